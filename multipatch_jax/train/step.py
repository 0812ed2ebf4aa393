"""The train step: split the params into trained and frozen ones, differentiate the loss, update the trained ones."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from multipatch_jax.arguments import require_key, require_number, require_pattern, require_positive, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import check_tiles, encode_tiles, options_for, prepare_execution, trace_encode
from multipatch_jax.nn import KERNELS, Compute
from multipatch_jax.params import (
    BATCH,
    RULES,
    Params,
    Rules,
    batch_parts,
    check_mesh,
    flatten,
    gather_fsdp,
    merge_lora,
    merge_params,
    shard_batch,
    shardings,
    split_params,
)

Encode = Callable[[Params, jax.Array], jax.Array]
Loss = jax.Array | tuple[jax.Array, jax.Array]
LossFn = Callable[[Params, Any, jax.Array, Encode], Loss]


class TrainState(NamedTuple):
    """The whole state of a training run, as a plain pytree: what a step takes beside the batch, and gives back.

    Attributes:
      params: the whole nested dict. Trained params are float32; frozen ones keep the dtype that they were given in.
      opt_state: the optimiser's state for the trained params only.
      step: int32 scalar, number of updates so far.
      rng: the run's random key, which never changes. The update number i, counted from 0, uses
        `jax.random.fold_in(rng, i)`.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    rng: jax.Array


def init_train_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    trainable: str = "connector",
    rng: jax.Array,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> TrainState:
    """Return the state before the first step.

    Trained params are copied as float32, because every step overwrites them. Frozen params keep their dtype, and are
    not copied.

    Args:
      params: nested dict of arrays, of any floating dtype.
      optimizer: as in `make_train_step`.
      trainable: as in `make_train_step`.
      rng: the run's random key, from `jax.random.key`.
      mesh: a mesh from `mp.params.make_mesh`, over which params and optimiser state are laid out; None leaves them
        where they are.
      rules: how each array is split over the mesh (see `mp.params.shardings`).

    Raises:
      ValueError: nothing would be trained, or `make_mesh` did not make the mesh.
    """
    check_mesh(mesh)
    require_key("rng", rng)
    require_type("optimizer", optimizer, optax.GradientTransformation)
    trained, frozen = split_params(params, trainable)
    trained = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trained)
    frozen, step = jax.tree.map(jnp.asarray, frozen), jnp.zeros((), jnp.int32)
    if mesh is None:
        return TrainState(merge_params(trained, frozen), _own(optimizer.init(trained)), step, rng)
    params = merge_params(trained, frozen)
    params = jax.device_put(params, shardings(params, mesh, rules))
    trained, _ = split_params(params, trainable)
    layout = shardings(jax.eval_shape(optimizer.init, trained), mesh, rules)
    opt_state = jax.jit(optimizer.init, out_shardings=layout)(trained)  # jitted: never whole on one device
    everywhere = NamedSharding(mesh, PartitionSpec())
    step, key = jax.device_put((step, jax.random.key_data(rng)), everywhere)  # a typed key cannot be put on other hosts
    return TrainState(params, opt_state, step, jax.random.wrap_key_data(key, impl=jax.random.key_impl(rng)))


def _own(tree: Any) -> Any:
    """Copy every array: `optimizer.init` may return the params themselves, and no array can be donated twice."""
    return jax.tree.map(jnp.copy, tree)


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    config: ModelConfig,
    compute: Compute = Compute(),
    trainable: str = "connector",
    accumulate: int = 1,
    max_norm: float | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Return a compiled train step: a function (state, batch) -> (state, metrics).

    The step donates the trained params, `opt_state` and `step` of the state passed to it, so use the returned state
    from then on.

    Args:
      loss_fn: pure function (params, batch, rng, encode) -> scalar loss. `rng` is a new key for every step and piece.
        `encode(params, tiles)` runs tower and connector on uint8 tiles (N, M, M, 3), returns tokens (N, T, D), and can
        be differentiated with respect to params. The loss must be a mean over the rows of the batch, so that averaging
        over the pieces of `accumulate` is right; or it is a pair (total, count), as of `language_model_loss`, where
        the mean total / count is taken over all pieces, however many each of them counts.
      optimizer: an optax transformation.
      config: the model's config.
      compute: how to compute. With `Compute(dtype="bfloat16")` the forward and backward pass compute in bfloat16, while
        trained params and optimiser state stay float32. With `Compute(remat=True)` the backward pass computes each
        layer's activations again, instead of keeping those of all layers.
      trainable: "connector", "vision", "text", "lora", "all", or a regex that is searched in the paths of params (see
        `mp.params.split_params`). Only the params it selects are differentiated; the others cost neither gradients nor
        optimiser state.
      accumulate: number of pieces that a batch is cut into. They run one after another, and their gradients are
        averaged in float32. A contrastive loss sees only the pairs within a piece.
      max_norm: if not None, gradients with a larger global norm are scaled down to this norm.
      mesh: the mesh passed to `init_train_state`. Each device encodes its own tiles. If the `tensor` axis has several
        devices, attention heads are split over it, and automatic attention is a kernel that XLA can split. On several
        hosts, each host passes its own rows of the batch to the step (`mp.params.local_rows`).
      rules: the rules passed to `init_train_state`.

    Returns:
      The step. Its metrics are float32 scalars on the device: "loss", "grad_norm" (before clipping) and "param_norm"
      (of the trained params, after the update).

    Raises:
      ValueError: `accumulate` is not a positive integer, or `make_mesh` did not make the mesh. The step itself raises
        a ValueError, before any work on the device, if nothing would be trained, if the batch does not divide over
        `accumulate` and the mesh, or if the state was made for another optimizer or `trainable`.
    """
    check_mesh(mesh)
    require_type("config", config, ModelConfig)
    require_type("optimizer", optimizer, optax.GradientTransformation)
    require_type("compute", compute, Compute)
    require_pattern("trainable", trainable)
    if not callable(loss_fn):
        raise ValueError(f"loss_fn must be a function (params, batch, rng, encode), got {type(loss_fn).__name__}.")
    if max_norm is not None:
        require_number("max_norm", max_norm, above=True)
    accumulate = require_positive("accumulate", accumulate, "pieces")
    split_heads = mesh is not None and mesh.shape["tensor"] > 1
    if split_heads and compute.attention == "auto":
        # For other kernels, and for loops over heads, XLA would gather all heads.
        splittable = next(name for name, kernel in KERNELS.items() if kernel.splits_heads)
        compute = dataclasses.replace(compute, attention=splittable)

    def encode(params: Params, tiles: jax.Array) -> jax.Array:
        if mesh is None:
            return encode_tiles(params, tiles, config=config, compute=compute)
        # On a mesh each device runs all of its tiles of a piece at once; use `accumulate` to have fewer in flight.
        if split_heads:
            return encode_tiles(params, tiles, config=config, compute=compute, batch_size=len(tiles))
        check_tiles(tiles, config)
        params, execution = prepare_execution(params, config, compute, len(tiles))
        return trace_encode(params, tiles, dataclasses.replace(execution, mesh=mesh))

    def loss_of(trained: Params, frozen: Params, batch: Any, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = merge_lora(merge_params(trained, frozen))
        if mesh is not None:
            params = gather_fsdp(params, mesh, rules, compute.dtype)
        loss = loss_fn(params, batch, rng, encode)
        total, count = loss if isinstance(loss, tuple) else (loss, jnp.ones(()))
        return total.astype(jnp.float32), count.astype(jnp.float32)

    def laid_out(tree: Any) -> Any:
        return tree if mesh is None else jax.lax.with_sharding_constraint(tree, shardings(tree, mesh, rules))

    def piece_gradients(trained, frozen, batch, rng):
        (total, count), grads = jax.value_and_grad(loss_of, has_aux=True)(trained, frozen, batch, rng)
        return (total, laid_out(grads)), count

    def gradients(trained, frozen, batch, rng):
        sums, count = summed_gradients(trained, frozen, batch, rng)
        return jax.tree.map(lambda x: x / count, sums)

    def summed_gradients(trained, frozen, batch, rng):
        if accumulate == 1:
            return piece_gradients(trained, frozen, batch, rng)

        def cut(x):  # piece i has rows i, i + accumulate, ...: each device then uses only rows that it holds
            pieces = x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)
            if mesh is None:
                return pieces
            return jax.lax.with_sharding_constraint(pieces, NamedSharding(mesh, PartitionSpec(None, *BATCH)))

        def add(total, piece):
            index, rows = piece
            found = piece_gradients(trained, frozen, rows, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, total, found), None

        zero = jnp.zeros((), jnp.float32)
        zeros = (zero, laid_out(jax.tree.map(jnp.zeros_like, trained))), zero
        total, _ = jax.lax.scan(add, zeros, (jnp.arange(accumulate), jax.tree.map(cut, batch)))
        return total

    def update(trained, opt_state, step, frozen, rng, batch):
        _check_state(optimizer, trained, opt_state)
        loss, grads = gradients(trained, frozen, batch, jax.random.fold_in(rng, step))
        grad_norm = optax.tree.norm(grads)
        if max_norm is not None:
            grads, _ = optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        metrics = {"loss": loss, "grad_norm": grad_norm, "param_norm": optax.tree.norm(trained)}
        return laid_out(trained), laid_out(opt_state), step + 1, metrics

    @functools.cache
    def compiled(options: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        donated = ("trained", "opt_state", "step")
        return jax.jit(update, donate_argnames=donated, compiler_options=dict(options) or None)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        _require_unused(state)
        trained, frozen = split_params(state.params, trainable)
        if mesh is not None:
            batch = shard_batch(batch, mesh)
        _check_batch(batch, accumulate, batch_parts(mesh))
        run = compiled(options_for(state.params, config, compute))
        trained, opt_state, step, metrics = run(trained, state.opt_state, state.step, frozen, state.rng, batch)
        return TrainState(merge_params(trained, frozen), opt_state, step, state.rng), metrics

    return train_step


def _require_unused(state: TrainState) -> None:
    """Raise a ValueError if a step was made from this state before."""
    arrays = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array) and not isinstance(x, Tracer)]
    if any(array.is_deleted() for array in arrays):
        raise ValueError("A step takes over the arrays of its state: go on from the state that the last step returned.")


def _check_state(optimizer: optax.GradientTransformation, trained: Params, opt_state: Any) -> None:
    if others := {path: x.dtype for path, x in flatten(trained).items() if x.dtype != jnp.float32}:
        path, dtype = next(iter(others.items()))
        raise ValueError(
            f"The trained params must be float32, got {path} in {dtype}: give init_train_state and make_train_step the "
            "same trainable."
        )

    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)

    if shapes(jax.eval_shape(optimizer.init, trained)) != shapes(opt_state):
        raise ValueError(
            "The state's opt_state is not of this optimizer and these trained params: give init_train_state and "
            "make_train_step the same optimizer and the same trainable."
        )


def _check_batch(batch: Any, accumulate: int, parts: int) -> None:
    sizes = {np.shape(x)[0] if np.ndim(x) else None for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"All arrays of a batch must agree in size along one first axis, got sizes {sorted(map(str, sizes))}."
        )
    (size,) = sizes
    if not size or size % (accumulate * parts):
        over = f"accumulate={accumulate} pieces" + (f" x {parts} devices of data x fsdp" if parts > 1 else "")
        raise ValueError(f"A batch must divide over {over}, got {size} rows.")

"""The decoder in compiled code for CPUs: one token of each row, or a chunk of a prompt, as one custom call of XLA.

A step takes as long as the weights take to be read from memory. So they are packed once after loading, in the order in
which a step reads them, and bfloat16 ones stay bfloat16 in memory. The cache is updated in place. The C++ is in
`native/decoder.cc` and `native/prefill.cc`; what is packed here is never saved.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from multipatch_jax.config import TextConfig
from multipatch_jax.nn import native
from multipatch_jax.nn.kv_cache import KVCache, init_cache
from multipatch_jax.nn.rotary import rotary_angles

MOST_ROWS = 64  # kMostRows of native/decoder.cc
CHUNK = 256  # kChunk of native/decoder_attention.h: a cache's capacity is a multiple of it
LANES = 16  # a head's width is a multiple of the widest vectors, those of AVX-512
PACKED_DTYPE = {"float32": jnp.float32, "bfloat16": jnp.uint32}  # two bfloat16 numbers lie in one of 32 bits
OPERANDS = ("qkv", "out", "gate_up", "down", "head", "norm1", "norm2", "norm")  # in the order of the calls' arguments
Packed = dict[str, Array]


def can_step(config: TextConfig, dtype: str, batch_size: int, capacity: int) -> bool:
    """Return whether compiled code can run this decoder in this dtype, with so many rows of this capacity."""
    fits = config.head_dim % LANES == 0 and capacity % CHUNK == 0 and batch_size <= MOST_ROWS
    return jax.default_backend() == "cpu" and native.best_build() is not None and dtype in PACKED_DTYPE and fits


def pack_decoder(params: dict[str, Any], config: TextConfig, dtype: Any, build: str | None = None) -> Packed:
    """Return the decoder's weights as the compiled step reads them, and its norms.

    Args:
      params: with "text_model", whose layers are stacked, and "lm_head" where embeddings are not tied.
      config: the language model's.
      dtype: of the computation, float32 or bfloat16.
      build: one of `native.builds()`; None is the best.
    """
    build = native.build_or_best(build)
    text = jax.tree.map(lambda x: jnp.asarray(x, dtype), params["text_model"])
    layers, attention, mlp = text["layers"], text["layers"]["self_attn"], text["layers"]["mlp"]
    tied = config.tie_word_embeddings
    head = text["embed_tokens"]["embedding"].T if tied else jnp.asarray(params["lm_head"]["kernel"], dtype)
    qkv = jnp.concatenate([attention[name]["kernel"] for name in ("q_proj", "k_proj", "v_proj")], axis=2)
    gate_up = _by_turns(mlp["gate_proj"]["kernel"], mlp["up_proj"]["kernel"], native.panel_columns(build))
    kernels = {
        "qkv": qkv,
        "out": attention["o_proj"]["kernel"],
        "gate_up": gate_up,
        "down": mlp["down_proj"]["kernel"],
        "head": head[None],
    }
    norms = {
        "norm1": layers["input_layernorm"]["scale"],
        "norm2": layers["post_attention_layernorm"]["scale"],
        "norm": text["norm"]["scale"],
    }
    packed = {name: _pack(kernel, build) for name, kernel in kernels.items()}
    return packed | {name: x.astype(jnp.float32) for name, x in norms.items()}


def _by_turns(gate: Array, up: Array, columns: int) -> Array:
    """Return two stacks of kernels (layers, D, F) as one, with panels of `columns` columns of both by turns."""
    padding = -gate.shape[2] % columns
    both = [jnp.pad(x, ((0, 0), (0, 0), (0, padding))).reshape(*x.shape[:2], -1, columns) for x in (gate, up)]
    return jnp.stack(both, axis=3).reshape(*gate.shape[:2], -1)


def _kernel_shapes(config: TextConfig, panel: int) -> dict[str, tuple[int, int, int]]:
    """Return (layers, rows, columns) of each kernel before it is packed, for panels of so many columns."""
    layers, width, hidden = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    return {
        "qkv": (layers, width, queries + 2 * keys),
        "out": (layers, queries, width),
        "gate_up": (layers, width, 2 * -(-hidden // panel) * panel),
        "down": (layers, hidden, width),
        "head": (1, width, config.vocab_size),
    }


def _packed_shape(layers: int, depth: int, columns: int, dtype: str, lanes: int) -> tuple[int, int, int]:
    """Return the shape of packed kernels: columns fill whole vectors of `lanes`, and rows of bfloat16 whole pairs.

    The lanes are an axis of their own, so that weights of a build with other vectors have another shape.
    """
    rows = depth if dtype == "float32" else -(-depth // 2)
    return layers, rows * -(-columns // lanes), lanes


def _pack(kernels: Array, build: str) -> Array:
    (layers, depth, columns), dtype = kernels.shape, kernels.dtype.name
    shape = _packed_shape(layers, depth, columns, dtype, native.vector_lanes(build))
    return jax.ffi.ffi_call(native.target(build, "pack", dtype), jax.ShapeDtypeStruct(shape, PACKED_DTYPE[dtype]))(
        kernels
    )


def init_packed_cache(config: TextConfig, batch_size: int, capacity: int, dtype: Any) -> KVCache:
    """Return an empty cache of all layers together: the arrays of `init_cache`, with the layers along a first axis.

    A step then takes two arrays, in place of two for each layer: to hand over so many takes longer than a layer.
    """
    one = jax.eval_shape(lambda: init_cache(config, batch_size, capacity, dtype))[0]
    return KVCache(*(jnp.zeros((config.num_hidden_layers, *x.shape), dtype) for x in one))


def decoder_step(
    packed: Packed,
    x: Float[Array, "B D"],
    positions: Int[Array | np.ndarray, " B"],
    cache: KVCache,
    config: TextConfig,
    build: str | None = None,
) -> tuple[Float32[Array, "B V"], KVCache]:
    """Run one token of each row through the decoder, and return its logits and the cache with the token in it.

    Args:
      packed: as `pack_decoder` returns it.
      x: input embeddings.
      positions: of the tokens, which are also their columns. A row whose position is outside of the cache holds no
        token: its logits are 0, and nothing of it is written.
      cache: as `init_packed_cache` makes it, of the weights' dtype or of bfloat16. It is updated in place where XLA can
        donate it.
      config: the language model's.
      build: the one that packed the weights.

    Raises:
      ValueError: the weights were packed by another build or for another config, or the cache does not fit them.
    """
    positions = jnp.asarray(positions, jnp.int32)
    cos, sin = (angles[:, 0] for angles in rotary_angles(positions[:, None], config))
    return _call("step", packed, (x, positions, cos, sin), x.shape[0], cache, config, build)


def decoder_prefill(
    packed: Packed,
    x: Float[Array, "S D"],
    row: Int[Array | np.ndarray, ""] | int,
    start: Int[Array | np.ndarray, ""] | int,
    last: Int[Array | np.ndarray, ""] | int,
    cache: KVCache,
    config: TextConfig,
    build: str | None = None,
) -> tuple[Float32[Array, "1 V"], KVCache]:
    """Run some tokens of one row through the decoder; return the logits of the last one, and the cache with them.

    Args:
      x: input embeddings.
      row: of the cache.
      start: position of the first token.
      last: index of the token whose logits are returned. Tokens after it are padding, and cost nothing.
      packed, cache, config, build: as in `decoder_step`.

    Raises:
      ValueError: as in `decoder_step`.
    """
    positions = jnp.asarray(start, jnp.int32) + jnp.arange(len(x), dtype=jnp.int32)
    cos, sin = (angles[0] for angles in rotary_angles(positions[None], config))
    place = jnp.stack([jnp.asarray(value, jnp.int32) for value in (row, start, last)])
    return _call("prefill", packed, (x, place, cos, sin), 1, cache, config, build)


def _call(
    what: str,
    packed: Packed,
    of_tokens: tuple[Array, ...],
    rows: int,
    cache: KVCache,
    config: TextConfig,
    build: str | None,
) -> tuple[Array, KVCache]:
    """Call a handler of the decoder, which returns logits (rows, V), and the cache, which it updates in place."""
    build = native.build_or_best(build)
    _check(packed, cache, config, build)
    weights, cached = _packed_dtype(packed), cache.k.dtype.name
    x, places, cos, sin = of_tokens
    fixed = [x.astype(jnp.float32), places, cos, sin, *(packed[name] for name in OPERANDS)]
    logits = jax.ShapeDtypeStruct((rows, config.vocab_size), jnp.float32)
    call = jax.ffi.ffi_call(
        native.target(build, what, weights if weights == cached else f"{weights}_{cached}"),
        (logits, *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in cache)),
        input_output_aliases={len(fixed): 1, len(fixed) + 1: 2},
    )
    found, k, v = call(
        *fixed,
        *cache,
        heads=np.int64(config.num_attention_heads),
        kv_heads=np.int64(config.num_key_value_heads),
        hidden=np.int64(config.intermediate_size),
        capacity=np.int64(cache.k.shape[-1]),
        epsilon=np.float32(config.rms_norm_eps),
    )
    return found, KVCache(k, v)


def _packed_dtype(packed: Packed) -> str:
    """Return the dtype that weights had before they were packed."""
    return next(name for name, dtype in PACKED_DTYPE.items() if packed["qkv"].dtype == dtype)


def _check(packed: Packed, cache: KVCache, config: TextConfig, build: str) -> None:
    """Raise ValueError where the C++ would read beside an array."""
    dtype, cached = _packed_dtype(packed), cache.k.dtype.name
    if cached not in (dtype, "bfloat16"):
        raise ValueError(f"The cache must be {dtype}, as the weights, or bfloat16, got {cached}.")
    lanes, columns = native.vector_lanes(build), native.panel_columns(build)
    for name, (layers, depth, width) in _kernel_shapes(config, columns).items():
        expected = _packed_shape(layers, depth, width, dtype, lanes)
        if packed[name].shape != expected:
            raise ValueError(
                f"Weights that the build {build} packs for this config have {name} of the shape {expected}, got "
                f"{packed[name].shape}; call pack_decoder again."
            )
    rows, capacity = cache.k.shape[1], cache.k.shape[-1]
    expected = jax.eval_shape(lambda: init_packed_cache(config, rows, capacity, cached))
    if any(ours.shape != theirs.shape for ours, theirs in zip(cache, expected, strict=True)) or capacity % CHUNK:
        raise ValueError(
            f"The cache must be init_packed_cache's for this config, with a multiple of {CHUNK} columns, got arrays of "
            f"the shapes {cache.k.shape} and {cache.v.shape}."
        )

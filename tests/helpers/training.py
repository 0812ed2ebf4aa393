"""Training steps on a tiny model, and the gradients of one."""

from typing import Any

import jax
import numpy as np
import optax

import multipatch_jax as mp
from multipatch_reference import distance
from tests.helpers import tolerances, train_worker
from tests.helpers.models import Model


def distill(params, batch, rng, encode):
    """A loss: the tokens should be the teacher's."""
    return mp.train.distillation_loss(encode(params, batch["tiles"]), batch["teacher"])


def train(
    model: Model,
    batch: dict[str, np.ndarray],
    optimizer: optax.GradientTransformation,
    *,
    steps: int = 1,
    loss_fn: Any = distill,
    trainable: str = "connector",
    params: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[mp.train.TrainState, list[dict[str, float]]]:
    """Trains from the model's params; returns (state, metrics of every step)."""
    options = {"config": model.config} | options
    start = {"trainable": trainable, "rng": jax.random.key(0), "mesh": options.get("mesh")}
    state = mp.train.init_train_state(params or model.params, optimizer, **start)
    step = mp.train.make_train_step(loss_fn, optimizer, trainable=trainable, **options)
    history = []
    for _ in range(steps):
        state, metrics = step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def gradients(model: Model, batch: dict[str, np.ndarray], **options: Any) -> Any:
    """The gradients of one step, kept by an optimiser that changes no param."""
    state, _ = train(model, batch, optax.chain(optax.trace(0.0), optax.scale(0.0)), **options)
    return jax.tree.map(np.asarray, state.opt_state[0].trace)


def new_state(
    optimizer: optax.GradientTransformation | None = None, config: mp.ModelConfig = train_worker.CONFIG
) -> mp.train.TrainState:
    """The first state of a run that trains the connector of `train_worker`'s model."""
    return train_worker.new_state(optimizer or optax.sgd(0.05), "connector", config=config)


def check_gradients(ours: Any, theirs: dict[str, np.ndarray], config: mp.ModelConfig) -> None:
    """Asserts that gradients, a tree of ours and PyTorch's by their names in a checkpoint, are equal."""
    ours = dict(mp.params.from_params(config, ours))
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        if name.endswith("k_proj.bias"):
            # A constant added to all scores does not change a softmax, so this gradient is zero but for rounding.
            scale = np.linalg.norm(theirs[name.replace("k_proj", "q_proj")])
            assert np.linalg.norm(gradient) <= tolerances.GRADIENT * scale
            assert np.linalg.norm(ours[name]) <= tolerances.GRADIENT * scale
        else:
            assert distance(ours[name], gradient) <= tolerances.GRADIENT, name

"""A training run in a process of its own, for the tests that kill it or give it many devices."""

import argparse
import dataclasses
import functools
import os
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import optax

import multipatch_jax as mp

CONFIG = mp.ModelConfig(
    vision=mp.VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    ),
    connector=mp.ConnectorConfig(scale_factor=2, text_hidden_size=24),
    tiling=mp.TilingConfig(longest_edge=128, tile_size=32, tokens_per_tile=4),
)
# The same with a decoder, whose three heads and one key head no mesh divides.
WHOLE = dataclasses.replace(
    CONFIG,
    text=mp.TextConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=64,
        pad_token_id=2,
    ),
    image_token_id=63,
)
EXAMPLES, BATCH = 44, 8  # an epoch is five batches and leaves four examples out


def examples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (EXAMPLES, 32, 32, 3), np.uint8)
    return {"tiles": tiles, "teacher": rng.normal(size=(EXAMPLES, 4, 24)).astype(np.float32)}


def noisy_loss(params, batch, rng, encode):
    """A loss of all that a resumed run must restore: params, the place in the data, and the step's key."""
    noise = 0.1 * jax.random.normal(rng, batch["teacher"].shape)
    return mp.train.distillation_loss(encode(params, batch["tiles"]), batch["teacher"] + noise)


def batch_at(step):
    rows = mp.train.batch_indices(step, num_examples=EXAMPLES, batch_size=BATCH, seed=3)
    return {name: values[rows] for name, values in examples().items()}


def params(config=CONFIG):
    """Random params by NumPy: compiling an initialiser in every process would take longer than the runs."""
    rng, flat = np.random.default_rng(4), {}
    parts = mp.params.PARTS if config.text else mp.params.PARTS[:2]
    for path, shape in mp.params.param_shapes(config, parts).items():
        scale = np.prod(shape[1:-1] if "layers" in path else shape[:-1]) ** -0.5 if path.endswith("kernel") else 0.1
        flat[path] = np.float32(rng.normal(float(path.endswith("scale")), scale, shape))
    return mp.params.unflatten(flat)


def new_state(optimizer, trainable="all", config=CONFIG, mesh=None):
    return mp.train.init_train_state(params(config), optimizer, trainable=trainable, rng=jax.random.key(1), mesh=mesh)


def optimizer():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, warmup_steps=5, decay_steps=40)
    return optax.adamw(schedule, mask=mp.params.kernel_mask)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang_before_the_last_rename(step: int):
    """Makes the save of `step` hang once all is written under a temporary name, and kills the process there."""
    rename = os.rename

    def hanging(source, target, **kwargs):
        if Path(target).name == str(step):
            threading.Timer(0.2, die).start()
            threading.Event().wait()
        rename(source, target, **kwargs)

    os.rename = hanging


@functools.cache
def noisy_step():
    return mp.train.make_train_step(noisy_loss, optimizer(), config=CONFIG, trainable="all", max_norm=1.0)


def run(folder: Path, die_at: int | None = None) -> tuple[int, mp.train.TrainState]:
    """Trains up to step 40 from the folder's newest checkpoint; returns (the step it began at, the last state)."""

    def batch(step):
        if step == die_at:
            checkpoints.wait()
            die()
        return batch_at(step)

    with mp.train.TrainCheckpoints(folder, CONFIG) as checkpoints:
        state = checkpoints.restore(new_state(optimizer()))
        first = int(state.step)
        state = mp.train.fit(noisy_step(), state, batch, num_steps=40, checkpoints=checkpoints, save_every=10)
    return first, state


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--die-saving", type=int)
    args = parser.parse_args()
    if args.die_saving:
        hang_before_the_last_rename(args.die_saving)
    run(args.folder, args.die_at)


if __name__ == "__main__":
    main()

"""Train the reader in three stages, each of which goes on where it was stopped:

  python -m examples.reader.train --stage tower
  python -m examples.reader.train --stage decoder
  python -m examples.reader.train --stage whole

A stage starts from the model that the stage before it has saved at its end. README.md in this folder says what each
learns, and why.
"""

import argparse
import csv
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers, muon

import multipatch_jax as mp
from examples.reader import stages
from examples.reader.ahead import made_ahead
from examples.reader.model import reader_config, write_tokenizer
from examples.reader.tower import SLOTS


def initial_params(seed: int, config: mp.ModelConfig) -> dict[str, Any]:
    """Return the params of a new run: positions start as 2-D sines, and what a block adds is halved."""
    params = mp.init_params(jax.random.key(seed), config, parts="all")
    tower, text = params["vision_model"], params["text_model"]
    grid, width = config.vision.patches_per_side, config.vision.hidden_size
    tower["embeddings"]["position_embedding"]["embedding"] = jnp.asarray(_sines(grid, width))
    for kernels in (tower["encoder"]["layers"], text["layers"]):
        attention, mlp = kernels["self_attn"], kernels["mlp"]
        for block, name in ((attention, "out_proj"), (attention, "o_proj"), (mlp, "fc2"), (mlp, "down_proj")):
            if name in block:
                block[name]["kernel"] = block[name]["kernel"] / 2
    head = jax.random.normal(jax.random.key(seed + 1), (config.connector.text_hidden_size, SLOTS * 11))
    return params | {"digit_head": {"kernel": head * 0.02}}


def _sines(grid: int, width: int) -> np.ndarray:
    """Return the positions of a grid of patches, (grid * grid, width): sines and cosines of rows and of columns."""
    frequencies = 2.0 ** np.linspace(0, 3, width // 4) * np.pi / grid
    angles = np.arange(grid)[:, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.repeat(waves, grid, axis=0), np.tile(waves, (grid, 1))
    return (0.5 * np.concatenate([rows, columns], axis=1)).astype(np.float32)


def make_optimizer(peak: float, num_steps: int) -> optax.GradientTransformation:
    """Return Muon for kernels and Adam for the rest, with one cosine from a short warm-up to nothing."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, max(num_steps // 30, 1), num_steps)

    def matrices(params):
        def axes(path, x):
            if path[-1].key != "kernel":
                return None
            if x.ndim == 4:
                return MuonDimensionNumbers((0, 1, 2), 3)  # the patch embedding
            return MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)  # of each layer of a stack

        return jax.tree_util.tree_map_with_path(axes, params)

    return muon(
        schedule,
        weight_decay=0.05,
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )


def main(argv: list[str] | None = None) -> None:
    """Run a stage, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=stages.STAGES, required=True)
    parser.add_argument("--out", type=Path, default=Path("reader-run"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of params and pages (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of the whole stage (default: the recipe's)")
    parser.add_argument("--until", type=int, help="stop at this step, to go on later (default: the last)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw pages ahead, for a GPU (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    config, stage = reader_config(), stages.STAGES[args.stage]
    before = args.out / f"{stage.after}-model"
    if stage.after and not before.is_dir():
        parser.error(f"this stage starts from {before}, which is not there: finish --stage {stage.after} first")
    if not (args.out / "tokenizer").is_dir():
        write_tokenizer(args.out / "tokenizer")
    processor = mp.Processor.from_pretrained(args.out / "tokenizer")
    num_steps = args.steps or stage.num_steps
    optimizer = make_optimizer(stage.peak, num_steps)
    step = mp.train.make_train_step(
        functools.partial(stage.loss, config=config),
        optimizer,
        config=config,
        trainable=stage.trainable,
        max_norm=1.0,
    )
    if stage.after:
        _, params = mp.from_pretrained(before, parts="all")
    else:
        params = initial_params(args.seed, config)
    last = min(args.until or num_steps, num_steps)
    batch = functools.partial(stage.batch, seed=args.seed, config=config, processor=processor)
    with (
        made_ahead(batch, args.workers, last) as batch_at,
        mp.train.TrainCheckpoints(args.out / args.stage, config, keep_last=1) as checkpoints,
    ):
        state = mp.train.init_train_state(params, optimizer, trainable=stage.trainable, rng=jax.random.key(args.seed))
        state = checkpoints.restore(state)
        state = mp.train.fit(
            step,
            state,
            batch_at,
            num_steps=last,
            checkpoints=checkpoints,
            save_every=200,
            callback=functools.partial(_log, args.out / f"{args.stage}.csv", time.perf_counter()),
            progress=True,
        )
    if int(state.step) == num_steps:
        mp.save_pretrained(args.out / f"{args.stage}-model", config, state.params, base=args.out / "tokenizer")


def _log(file: Path, start: float, step: int, metrics: dict[str, float]) -> None:
    """Append a line: the step, its loss, the norm of its gradient, and the seconds since the process began."""
    with file.open("a", newline="") as out:
        csv.writer(out).writerow(
            [step, f"{metrics['loss']:.5f}", f"{metrics['grad_norm']:.4f}", f"{time.perf_counter() - start:.1f}"]
        )


if __name__ == "__main__":
    main()

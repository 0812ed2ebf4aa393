"""Trains a small tower from scratch with SigLIP's loss, and matches held-out images with their captions.

    python -m benchmarks.contrastive [--seed 0] [--steps 400]

An image shows two handwritten digits side by side (scikit-learn's 1,797 scans of 43 writers), and its caption is their
number, "47". The tower and connector encode the image, and two tables of ten vectors encode the caption; nothing is
pretrained. The training sees neither a quarter of the scans nor twenty of the hundred numbers. The task is to find an
image's caption among all hundred; chance is 1 %.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

import multipatch_jax as mp
from benchmarks.shared.options import parser

CONFIG = mp.ModelConfig(
    vision=mp.VisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    ),
    connector=mp.ConnectorConfig(scale_factor=2, text_hidden_size=32),
    tiling=mp.TilingConfig(longest_edge=128, tile_size=32, tokens_per_tile=4),
)
COMPUTE = mp.Compute(precision="default")
BATCH = 64


def draw(rng: np.random.Generator, scans: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """BATCH pairs: tiles (B, 32, 32, 3) of scans drawn at random, and the numbers (B,) that they show."""
    chosen = rng.choice(numbers, BATCH)
    tiles = np.zeros((BATCH, 32, 32, 3), np.uint8)
    for side, digits in enumerate((chosen // 10, chosen % 10)):
        rows = [rng.choice(np.flatnonzero(labels == digit)) for digit in digits]
        pixels = scans[rows].repeat(2, axis=1).repeat(2, axis=2)[..., None]
        tiles[:, 8:24, 16 * side : 16 * (side + 1)] = pixels
    return {"tiles": tiles, "numbers": chosen.astype(np.int32)}


def captions(params, numbers):
    """(B,) numbers -> (B, D): a vector for each digit at each of the two places."""
    return params["tens"][numbers // 10] + params["ones"][numbers % 10]


def loss_fn(params, batch, rng, encode):
    head = params["contrastive"]
    return mp.train.sigmoid_contrastive_loss(
        mp.train.pool_tokens(encode(params, batch["tiles"])),
        captions(head, batch["numbers"]),
        log_scale=head["log_scale"],
        bias=head["bias"],
        positives=batch["numbers"][:, None] == batch["numbers"],  # a number may stand in a batch twice
    )


def accuracy(params, batches) -> float:
    """Share of the images whose nearest of the hundred captions is their own."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    texts = unit(np.asarray(captions(params["contrastive"], np.arange(100))))
    right = []
    for batch in batches:
        tokens = mp.encode_tiles(params, batch["tiles"], config=CONFIG, compute=COMPUTE)
        images = unit(np.asarray(mp.train.pool_tokens(tokens)))
        right.append((images @ texts.T).argmax(axis=1) == batch["numbers"])
    return float(np.mean(right))


def run(seed: int = 0, steps: int = 400, progress: bool = False) -> dict[str, float]:
    """Trains; returns the accuracies on held-out pairs before and after, and the first and last loss."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    assert isinstance(digits, Bunch)
    scans, labels = (digits.images * 255 / 16).astype(np.uint8), digits.target
    held = np.arange(len(scans)) >= len(scans) * 3 // 4  # the last scans, most of them by writers who wrote no others
    new_numbers = rng.choice(100, 20, replace=False)
    seen_numbers = np.setdiff1d(np.arange(100), new_numbers)
    tests = {
        "held-out scans": [draw(rng, scans[held], labels[held], seen_numbers) for _ in range(8)],
        "held-out scans, unseen numbers": [draw(rng, scans[held], labels[held], new_numbers) for _ in range(8)],
    }

    keys = jax.random.split(jax.random.key(seed), 4)
    params = mp.init_params(keys[0], CONFIG)
    width = CONFIG.connector.text_hidden_size
    params["contrastive"] = {
        "tens": jax.random.normal(keys[1], (10, width)),
        "ones": jax.random.normal(keys[2], (10, width)),
        "log_scale": jnp.log(10.0),
        "bias": jnp.float32(-10.0),
    }
    before = {name: accuracy(params, batches) for name, batches in tests.items()}

    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, warmup_steps=steps // 10, decay_steps=steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-4, mask=mp.params.kernel_mask)
    state = mp.train.init_train_state(params, optimizer, trainable="all", rng=keys[3])
    step = mp.train.make_train_step(loss_fn, optimizer, config=CONFIG, compute=COMPUTE, trainable="all", max_norm=1.0)
    losses: list[float] = []

    def batch_at(number):
        return draw(np.random.default_rng((seed, number)), scans[~held], labels[~held], seen_numbers)

    def record(number, metrics):
        losses.append(metrics["loss"])

    state = mp.train.fit(step, state, batch_at, num_steps=steps, callback=record, progress=progress)
    after = {name: accuracy(state.params, batches) for name, batches in tests.items()}
    result = {f"{name}, before": value for name, value in before.items()} | after
    return result | {"first loss": losses[0], "last loss": losses[-1]}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, default=400)
    args = options.parse_args()
    start = time.perf_counter()
    for name, value in run(args.seed, args.steps, progress=True).items():
        print(f"{name}: {value:.3f}" if "loss" in name else f"{name}: {value:.1%} (chance 1 %)")
    print(f"seed {args.seed}, {args.steps} steps, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

"""The first stage's task: the tower says, for each visual token, which digits are in its cell of 16 x 16 pixels.

It is a dense task: each tile has dozens of answers, where a page's text has a few. The linear head that answers is
thrown away afterwards; what a token has learned to hold is what the decoder reads.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int32

import multipatch_jax as mp
from examples.reader.pages import FULL, Page, random_page, random_size

NONE = 10  # the class of a place without a digit
# What is asked of a cell: the digit whose centre is in its left half, in its right half, and the digit that the tile's
# edge cuts there, with its centre in the next tile. The decoder can then put together what two tiles know of a digit.
LEFT, RIGHT, CUT = range(3)
SLOTS = 3
REACH = 5  # pixels outside of a tile within which the centre of a digit that is cut is still asked for


def cell_labels(page: Page, plan: mp.image.TilePlan, config: mp.ModelConfig) -> Int32[np.ndarray, "tiles T 3"]:
    """Return the digits in the cells of a page's tiles, without the global tile; `NONE` where there is none."""
    side = config.tiling.tile_size
    cells = int(config.tiling.tokens_per_tile**0.5)
    cell = side // cells
    labels = np.full((plan.rows, plan.cols, cells, cells, SLOTS), NONE, np.int32)
    for name, (x, y) in zip("".join(page.numbers), page.centres, strict=True):
        x, y = x * plan.cols * side, y * plan.rows * side
        for row in range(plan.rows):
            for col in range(plan.cols):
                u, v = x - col * side, y - row * side
                if 0 <= u < side and 0 <= v < side:
                    half = LEFT if u % cell < cell / 2 else RIGHT
                    labels[row, col, int(v // cell), int(u // cell), half] = int(name)
                elif -REACH < u < side + REACH and -REACH < v < side + REACH:
                    at = (min(max(int(value // cell), 0), cells - 1) for value in (v, u))
                    labels[row, col, *at, CUT] = int(name)
    return labels.reshape(-1, cells * cells, SLOTS)


def batch(step: int, *, seed: int, config: mp.ModelConfig, tiles: int = 128, held_out: bool = False, **_: Any) -> Any:
    """Return the tiles of full pages, in any order, and the digits of their cells."""
    rng = np.random.default_rng((seed, step, 1))
    found: list[Any] = []
    labels: list[Any] = []
    while sum(map(len, found)) < tiles:
        height, width = random_size(rng, 110, 400)
        page = random_page(rng, height, width, content=FULL, held_out=held_out)
        plan = mp.plan_tiles(height, width, config.tiling)
        found.append(mp.tile_image_host(page.pixels, config.tiling)[: plan.rows * plan.cols])
        labels.append(cell_labels(page, plan, config))
    return {"tiles": np.concatenate(found)[:tiles], "labels": np.concatenate(labels)[:tiles]}


def digit_logits(params: Any, tokens: jax.Array) -> jax.Array:
    """Return (N, T, SLOTS, 11) from visual tokens."""
    return (tokens @ params["digit_head"]["kernel"]).reshape(*tokens.shape[:2], SLOTS, 11)


def loss(params: Any, batch: Any, rng: Any, encode: Any, **_: Any) -> jax.Array:
    """The cross entropy of the digits of all cells: the mean over the cells, the sum over what is asked of one."""
    scores = digit_logits(params, encode(params, batch["tiles"]))
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["labels"])
    return jnp.mean(jnp.sum(losses, axis=-1))

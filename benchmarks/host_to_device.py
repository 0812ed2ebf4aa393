"""Measures where the time of a 12-megapixel NumPy image goes, step by step: `python -m benchmarks.host_to_device`.

Runs on this machine's default backend, with SmolVLM-256M's tower and connector on random weights, in bfloat16 on
accelerators. Every step is waited for, and the steps take turns. Prints the median milliseconds of each as JSON:

| step | what is timed |
|---|---|
| prepare | the host's part, from the array to what is sent |
| send | from that to arrays on the device |
| tile, FORM | from these arrays to tiles, with each form of the resize that suits the backend |
| encode | the 13 tiles to tokens |
| NumPy to tokens | `encode_image` of the array: all of the above |
| device to tokens | `encode_image` of a `jax.Array` |
"""

import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import multipatch_jax as mp
from benchmarks.shared.options import parser
from multipatch_jax.image import default_resize_form, prepare_image, send_pieces, tile_padded

HEIGHT, WIDTH = 3000, 4000
CONFIG = mp.presets.SMOLVLM_256M


def send(pixels: Any) -> Any:
    """Sends an image as its program would, and waits for it."""
    return jax.block_until_ready(send_pieces(pixels) if isinstance(pixels, tuple) else jax.device_put(pixels))


def steps(image: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    params = jax.tree.map(lambda x: x.astype(dtype), mp.init_params(jax.random.key(0), CONFIG))
    prepared = prepare_image(image, CONFIG.tiling)
    on_device, tiles = jax.device_put(image), mp.tile_image(image, CONFIG.tiling)
    sent, best = send(prepared.pixels), default_resize_form()
    result: dict[str, Callable[[], Any]] = {
        "prepare": lambda: prepare_image(image, CONFIG.tiling),
        "send": lambda: send(prepared.pixels),
    }
    for form in {"gather": ["gather"]}.get(best, ["banded", "batched"]):
        static = {"num_tiles": prepared.plan.num_tiles, "tiling": CONFIG.tiling, "form": form}
        program = jax.jit(functools.partial(tile_padded, **static))
        result[f"tile, {form}"] = functools.partial(program, sent, prepared.steps)
    return result | {
        "encode": lambda: mp.encode_tiles(params, tiles, config=CONFIG),
        "NumPy to tokens": lambda: mp.encode_image(params, image, config=CONFIG),
        "device to tokens": lambda: mp.encode_image(params, on_device, config=CONFIG),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=20, help="turns of each step")
    rounds = options.parse_args().rounds
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    timed = steps(image)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(rounds + 1):
        for name, step in timed.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - start)
    milliseconds = {name: round(statistics.median(times) * 1e3, 2) for name, times in seconds.items()}
    print(json.dumps({"device": jax.devices()[0].device_kind, "milliseconds": milliseconds}, indent=1))


if __name__ == "__main__":
    main()

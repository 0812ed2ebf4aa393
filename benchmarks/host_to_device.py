"""Measures how a 12-megapixel NumPy image gets to its tokens: `python -m benchmarks.host_to_device`.

First counts what each platform's way of preparing the image costs, which needs none of these devices: bytes copied on
the host, bytes sent, and arrays sent. `--count` stops there.

Then times the steps on this machine's default backend, with SmolVLM-256M's tower and connector on random weights, in
bfloat16 on accelerators. Every step is waited for, and the steps take turns. Prints the median milliseconds of each:

| step | what is timed |
|---|---|
| prepare | the host's part, from the array to what is sent |
| send | from that to arrays on the device |
| tile | from these arrays to tiles |
| encode | the 13 tiles to tokens |
| NumPy to tokens | `encode_image` of the array: all of the above |
| device to tokens | `encode_image` of a `jax.Array` |
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import multipatch_jax as mp
from benchmarks.shared.options import parser
from multipatch_jax.image import default_resize_form, prepare_image, send_pieces, tile_padded

HEIGHT, WIDTH = 3000, 4000
CONFIG = mp.presets.SMOLVLM_256M


def counts(image: np.ndarray) -> Iterator[str]:
    """The lines of the first table."""
    yield f"{'':<24} {'MB copied':>9} {'MB sent':>9} {'arrays':>7}"
    for platform in ("cpu", "tpu", "gpu"):
        form = default_resize_form(platform)
        pixels, steps = prepare_image(image, CONFIG.tiling, form=form)[1:3]
        assert pixels is not None
        pieces = list({id(one): one for one in (pixels if isinstance(pixels, tuple) else (pixels,))}.values())
        sent = [*pieces, *jax.tree.leaves(steps)] if platform != "cpu" else []  # a CPU reads them where they lie
        copied = sum(one.nbytes for one in pieces if not np.shares_memory(one, image))
        sizes = f"{copied / 1e6:9.1f} {sum(one.nbytes for one in sent) / 1e6:9.1f} {len(sent):7d}"
        yield f"{f'{platform}, {form}':<24} {sizes}"


def send(pixels: Any) -> Any:
    """Sends an image as its program would, and waits for it."""
    return jax.block_until_ready(send_pieces(pixels) if isinstance(pixels, tuple) else jax.device_put(pixels))


def steps(image: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    params = jax.tree.map(lambda x: x.astype(dtype), mp.init_params(jax.random.key(0), CONFIG))
    prepared = prepare_image(image, CONFIG.tiling)
    on_device, tiles = jax.device_put(image), mp.tile_image(image, CONFIG.tiling)
    sent = send(prepared.pixels)
    static = {"num_tiles": prepared.plan.num_tiles, "tiling": CONFIG.tiling, "form": default_resize_form()}
    tile = jax.jit(lambda pixels, steps: tile_padded(pixels, steps.unpack(), **static))
    return {
        "prepare": lambda: prepare_image(image, CONFIG.tiling),
        "send": lambda: send(prepared.pixels),
        "tile": lambda: tile(sent, prepared.steps),
        "encode": lambda: mp.encode_tiles(params, tiles, config=CONFIG),
        "NumPy to tokens": lambda: mp.encode_image(params, image, config=CONFIG),
        "device to tokens": lambda: mp.encode_image(params, on_device, config=CONFIG),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=20, help="turns of each step")
    options.add_argument("--count", action="store_true", help="count bytes and arrays, and time nothing")
    args = options.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    print("\n".join(counts(image)))
    if args.count:
        return
    timed = steps(image)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(args.rounds + 1):
        for name, step in timed.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            if turn:  # the first turn compiles
                seconds[name].append(time.perf_counter() - start)
    print(f"\n{jax.devices()[0].device_kind:<24} {'ms':>9}")
    for name, times in seconds.items():
        print(f"{name:<24} {statistics.median(times) * 1e3:9.2f}")


if __name__ == "__main__":
    main()

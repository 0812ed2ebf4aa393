"""The systems of `benchmarks.gpu` that encode images, ours and transformers', and the ceiling of their rates.

A turn of the towers and of the images makes `Case.calls` calls.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import ceiling
from benchmarks.shared.gpu_case import case_of, torch_device, wait_for_torch
from benchmarks.shared.torch_tile import torch_module
from benchmarks.shared.turns import System, Turn

SDPA, COMPILED = "transformers, sdpa", "transformers, torch.compile"
FLOAT32 = "float32"  # the file of the tokens that others are compared with


def keep_tokens(folder: Path, name: str, tokens: np.ndarray) -> None:
    """Saves the tokens of a system, to compare them after the turns."""
    np.save(folder / f"{name}.npy", tokens.astype(np.float32))


@functools.cache
def _loaded(folder: Path) -> tuple[Any, Any, Any]:
    """Our config, bfloat16 params on the device, and the tiles there."""
    import jax

    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder, dtype="bfloat16")
    return config, jax.device_put(params), jax.device_put(np.load(folder / "tiles.npy"))


def _calls(folder: Path, encode: Callable[[], Any]) -> Turn:
    calls = case_of(folder).calls

    def turn() -> None:
        for _ in range(calls - 1):
            encode()
        encode().block_until_ready()

    return turn


def ours(folder: Path) -> Turn:
    import multipatch_jax as mp

    config, params, tiles = _loaded(folder)
    keep_tokens(folder, "ours", np.asarray(mp.encode_tiles(params, tiles, config=config)))
    return _calls(folder, lambda: mp.encode_tiles(params, tiles, config=config))


def ours_nested(folder: Path) -> Turn:
    import jax

    import multipatch_jax as mp

    config, params, tiles = _loaded(folder)
    encode = jax.jit(lambda params, tiles: mp.encode_tiles(params, tiles, config=config))
    keep_tokens(folder, "nested", np.asarray(encode(params, tiles)))
    return _calls(folder, lambda: encode(params, tiles))


def image(folder: Path, on_device: bool) -> Turn:
    import jax

    import multipatch_jax as mp

    config, params, _ = _loaded(folder)
    photo = np.load(folder / "photo.npy")
    source = jax.device_put(photo) if on_device else photo
    return _calls(folder, lambda: mp.encode_image(params, source, config=config))


def stream(folder: Path) -> Turn:
    import multipatch_jax as mp

    config, params, _ = _loaded(folder)
    photos = [np.load(folder / "photo.npy")] * case_of(folder).calls
    return lambda: mp.encode_images(params, photos, config=config)


def reference(folder: Path, compiled: bool) -> Turn:
    import torch

    device, calls = torch_device(), case_of(folder).calls
    torch.backends.cudnn.allow_tf32 = False  # the tokens in float32 are exact
    module = torch_module(folder).to(device)
    pixels = (torch.from_numpy(np.load(folder / "tiles.npy")).to(device).float() - 127.5) / 127.5
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        if not compiled:
            keep_tokens(folder, FLOAT32, module(pixels).cpu().numpy())
        module, pixels = module.bfloat16(), pixels.bfloat16()
        module = torch.compile(module) if compiled else module
        keep_tokens(folder, "compiled" if compiled else "sdpa", module(pixels).float().cpu().numpy())

    def turn() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                module(pixels)
            wait_for_torch()

    return turn


def xla_matmul(folder: Path) -> Turn:
    case = case_of(folder)
    return ceiling.jax_matmul(case.matmul, "bfloat16", case.calls)(folder)


def torch_matmul(folder: Path) -> Turn:
    case = case_of(folder)
    return ceiling.torch_matmul(case.matmul, "bfloat16", case.calls, torch_device())(folder)


# name: the system, and the file that it saves its tokens in
TOWERS: dict[str, tuple[System, str]] = {
    "multipatch_jax": (ours, "ours"),
    "multipatch_jax, inside the user's jit": (ours_nested, "nested"),
    SDPA: (functools.partial(reference, compiled=False), "sdpa"),
    COMPILED: (functools.partial(reference, compiled=True), "compiled"),
}
IMAGES: dict[str, System] = {
    "encode_image, on the GPU": functools.partial(image, on_device=True),
    "encode_image, NumPy": functools.partial(image, on_device=False),
    "encode_images, NumPy": stream,
}
CEILING: dict[str, System] = {"matmul, XLA": xla_matmul, "matmul, torch": torch_matmul}
SYSTEMS: dict[str, System] = {name: system for name, (system, _) in TOWERS.items()} | IMAGES | CEILING
PROCESSES = [
    ["multipatch_jax", "multipatch_jax, inside the user's jit", "matmul, XLA"],
    list(IMAGES)[:2],
    list(IMAGES)[2:],
    [SDPA, "matmul, torch"],
    [COMPILED],
]

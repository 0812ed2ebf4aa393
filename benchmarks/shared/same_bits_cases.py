"""Computes one side of `benchmarks.same_bits`: every case with the `multipatch_jax` of one checkout, saved as raw bits.

    python -P same_bits_cases.py CHECKOUT FOLDER OUTPUT.npz

PYTHONPATH must begin with CHECKOUT. The old code runs this file too, so it imports nothing of `benchmarks`, and uses
only names that are at the package's front door in both.
"""

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import multipatch_jax as mp

STREAM = ("wide.npy", "tall.npy", "large.npy", "long.npy", "alpha.png")  # every bucket, the host's way, and a file


def tiling_cases(folder: Path, config: Any) -> Iterator[tuple[str, Any]]:
    """(case, array) for every way from an image to its tiles; the checkpoint's dtype plays no part."""
    for file in ("photo.jpg", "alpha.png"):
        yield f"load_image, {file}", mp.load_image(folder / file)
    for name in ("wide", "tall", "large", "long"):
        image = np.load(folder / f"{name}.npy")
        size = f"{image.shape[0]} x {image.shape[1]}"
        yield f"tile_image, NumPy, {size}", mp.tile_image(image, config.tiling)
        yield f"tile_image_host, {size}", mp.tile_image_host(image, config.tiling)
    image = jnp.asarray(np.load(folder / "wide.npy"))
    yield "tile_image, jax.Array", mp.tile_image(image, config.tiling)
    yield "tile_image, in the user's jit", jax.jit(lambda image: mp.tile_image(image, config.tiling))(image)


def encoding_cases(folder: Path, config: Any, params: Any) -> Iterator[tuple[str, Any]]:
    """(case, array) for every way from an image or tiles to tokens or features."""
    wide, tall = np.load(folder / "wide.npy"), np.load(folder / "tall.npy")
    batch = np.stack([wide, wide[::-1]])
    encode = functools.partial(mp.encode_image, config=config)
    yield "encode_image, NumPy", encode(params, wide)
    yield "encode_image, NumPy, more than a bucket holds", encode(params, np.load(folder / "long.npy"))
    yield "encode_image, a JPEG file", encode(params, folder / "photo.jpg")
    yield "encode_image, a PNG file with transparency", encode(params, folder / "alpha.png")
    yield "encode_image, jax.Array", encode(params, jnp.asarray(tall))
    yield "encode_image, a batch, NumPy", encode(params, batch)
    yield "encode_image, a batch, jax.Array", encode(params, jnp.asarray(batch))
    yield "encode_image, in the user's jit", jax.jit(encode)(params, jnp.asarray(wide))

    tiles = mp.tile_image_host(wide, config.tiling)
    yield "encode_tiles", mp.encode_tiles(params, tiles, config=config)
    yield "encode_tiles, batch_size=2", mp.encode_tiles(params, tiles, config=config, batch_size=2)

    images = [np.load(folder / file) if file.endswith(".npy") else folder / file for file in STREAM]
    for where in ("device", "host"):
        tokens = mp.encode_images(params, images, config=config, tile_on=where)
        for file, of_image in zip(STREAM, tokens, strict=True):
            yield f"encode_images, tiles on the {where}, {file}", of_image

    pixels = (tiles[:2].astype(np.float32) - 127.5) / 127.5
    mask = np.ones(pixels.shape[:3], bool)
    mask[0, 300:], mask[1, :, 200:] = False, False
    yield "vision_features", mp.vision_features(params, pixels, config=config)
    yield "vision_features, with a mask", mp.vision_features(params, pixels, config=config, pixel_attention_mask=mask)


def main() -> None:
    checkout, folder, output = map(Path, sys.argv[1:])
    if not Path(mp.__file__).resolve().is_relative_to(checkout.resolve()):
        raise SystemExit(f"Expected the multipatch_jax of {checkout}, imported that of {Path(mp.__file__).parent}.")
    bits: dict[str, Any] = {}

    def save(dtype: str, cases: Iterator[tuple[str, Any]]) -> None:
        for case, result in cases:
            array = np.asarray(result)
            bits[f"{case}|{dtype}|{array.dtype.name}"] = array.view(f"u{array.dtype.itemsize}")

    for dtype in ("float32", "bfloat16"):
        config, params = mp.from_pretrained(folder / "model", dtype=dtype)
        if dtype == "float32":
            save("-", tiling_cases(folder, config))
        save(dtype, encoding_cases(folder, config, params))
    np.savez(output, **bits)


if __name__ == "__main__":
    main()

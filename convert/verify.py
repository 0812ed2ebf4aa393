"""Runs the reference and us on one checkpoint, and names the first stage that differs.

    python convert/verify.py HuggingFaceTB/SmolVLM-256M-Instruct --image photo.jpg
    python convert/verify.py SmolVLM-256M-Instruct       a preset's name: random weights of its shapes, no download

Both compute in float32 on a CPU. Needs torch and transformers: pip install "multipatch_jax[test]".
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from reference import image_processor, reference_model, save_checkpoint
from skimage import data
from transformers import AutoModelForImageTextToText

import multipatch_jax as mp
from multipatch_jax import checkpoint, preprocess, vision, weights
from multipatch_jax.encode import resolve

LIMIT = 1e-4  # relative norm; two right float32 programs differ by 1e-6 to 1e-5


def distance(ours: Any, reference: Any) -> float:
    """|ours - reference| / |reference|, in float64."""
    a, b = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)) if a.shape == b.shape else float("inf")


def random_checkpoint(name: str, folder: Path) -> Path:
    """A checkpoint of a preset's tower and connector, random, beside a language model of one layer."""
    config = mp.PRESETS[name]
    assert config.text is not None
    text = dataclasses.replace(config.text, num_hidden_layers=1)
    config = dataclasses.replace(config, text=text, embedding_size=None)
    return save_checkpoint(reference_model(config), config, folder)


def stages(folder: Path, image: np.ndarray) -> Iterator[tuple[str, float]]:
    """Yields (stage, distance) in the order of the computation; each goes on from its own last stage."""
    config, params = mp.from_pretrained(folder, dtype="float32")
    config = resolve(config, params)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    plan = mp.plan_tiles(image.shape[0], image.shape[1], config.tiling)
    options: Any = {"return_row_col_info": True, "input_data_format": "channels_last", "return_tensors": "np"}
    theirs = image_processor(config)(image, **options)
    pixels = np.moveaxis(theirs["pixel_values"][0], 1, -1)
    grid = (theirs["rows"][0][0], theirs["cols"][0][0], len(pixels))
    yield "geometry", distance((plan.rows, plan.cols, plan.num_tiles), grid)
    tiles = mp.tile_image_host(image, config.tiling)
    normalised = preprocess.normalize(jax.numpy.asarray(tiles))
    yield "pixels", distance(normalised, pixels)

    seen: dict[str, Any] = {}

    def remember(name: str, module: torch.nn.Module) -> None:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = output

        module.register_forward_hook(hook)

    tower = model.model.vision_model
    remember("embeddings", tower.embeddings)
    for index, layer in enumerate(tower.encoder.layers):
        remember(f"layer {index}", layer)
    with torch.no_grad():  # the global tile, which is the last, will do from here on
        output = model.model.get_image_features(torch.from_numpy(pixels[-1:]).moveaxis(-1, 1)[None])

    ours = params["vision_model"]
    x = vision.VisionEmbeddings(config).apply({"params": ours["embeddings"]}, normalised[-1])
    yield "embeddings", distance(x, seen["embeddings"][0])
    run_layer = jax.jit(lambda layer, x: vision.EncoderLayer(config).apply({"params": layer}, x)[0])
    for index in range(config.vision.num_hidden_layers):
        x = run_layer(jax.tree.map(lambda leaf, i=index: leaf[i], ours["encoder"]["layers"]), x)
        yield f"layer {index}", distance(x, seen[f"layer {index}"].reshape(x.shape))
    yield "tower", distance(mp.vision_features(params, normalised[-1:], config=config), output.last_hidden_state)
    yield "connector", distance(mp.encode_tiles(params, tiles[-1:], config=config)[0], output.pooler_output[0])


def main() -> int:
    """0 when every stage agrees, 1 when one does not, 2 when the input is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"a folder, a hub id, or one of {', '.join(mp.PRESETS)}")
    parser.add_argument(
        "--image", type=Path, metavar="PHOTO", help="default: a photograph that comes with scikit-image"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            image = mp.load_image(args.image) if args.image else data.chelsea()
            random = args.model in mp.PRESETS
            if random:
                folder = random_checkpoint(args.model, Path(temporary))
            else:
                folder = checkpoint.resolve(args.model, weights.PARTS)
        except (ValueError, OSError) as error:
            print(f"verify: {error}", file=sys.stderr)
            return 2
        print(f"{args.model}: {'random weights of its shapes' if random else folder}")
        print(f"{'stage':<12} distance from the reference")
        first = None
        for stage, error in stages(folder, image):
            agrees = error <= LIMIT
            first = first or (None if agrees else stage)
            print(f"{stage:<12} {error:.2e}{'' if agrees else '   <-- differs'}", flush=True)
    print(f"The first stage that differs is: {first}." if first else f"Every stage agrees (limit {LIMIT:g}).")
    return 1 if first else 0


if __name__ == "__main__":
    raise SystemExit(main())

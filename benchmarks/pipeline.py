"""From a photograph's file to its tokens: `python -m benchmarks.pipeline`.

Needs the `test` extra. The file is a 12-megapixel JPEG (13 tiles), the model SmolVLM-256M's tower and connector with
random weights in float32. The whole path, preprocessing included, is timed against the reference's, each in a process
of its own, taking turns; medians, and ratios to the reference. Prints a table and writes benchmarks/pipeline.json.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import turns
from benchmarks.cpu import make_checkpoint

PHOTO = "photo.jpg"


def ours(folder: Path, **changes: Any) -> Callable[[], object]:
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder)
    config = dataclasses.replace(config, **changes)
    return lambda: mp.encode_image(params, folder / PHOTO, config=config).block_until_ready()


def reference(folder: Path) -> Callable[[], object]:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    import multipatch_jax as mp
    from multipatch_reference import image_processor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    processor = image_processor(mp.presets.SMOLVLM_256M)

    def run() -> object:
        inputs = processor(Image.open(folder / PHOTO), return_tensors="pt")
        with torch.inference_mode():
            return model.model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"])

    return run


SYSTEMS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "multipatch_jax": ours,
    "multipatch_jax, XLA alone": lambda folder: ours(folder, attention="blocked"),
    "transformers, sdpa": reference,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each system, some 20 s each")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return turns.work(SYSTEMS, args.worker[0], Path(args.worker[1]))
    from PIL import Image
    from skimage import data

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder)
        photo = Image.fromarray(data.coffee()).resize((4000, 3000), Image.Resampling.BICUBIC)
        photo.save(folder / PHOTO, quality=92)
        times = turns.take_turns("benchmarks.pipeline", SYSTEMS, folder, args.rounds)
    for system in SYSTEMS:
        share = turns.ratio(times, system, "transformers, sdpa")
        print(f"{system:<34} {statistics.median(times[system]):6.2f} s   {share:5.2f} of the reference")
    packages = "jax jaxlib flax torch transformers numpy pillow".split()
    turns.write_record("pipeline", packages, seconds=times)


if __name__ == "__main__":
    main()

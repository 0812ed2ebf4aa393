"""Measures the whole path from a photograph's file to its tokens: `python -m benchmarks.pipeline`.

Needs the `test` extra. The file is a 12-megapixel JPEG (13 tiles), the model SmolVLM-256M's tower and connector with
random weights in float32. A turn includes preprocessing. multipatch_jax and the reference take turns, each in its own
process; medians, and ratios to the reference. Prints a table and writes benchmarks/records/pipeline.json.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.shared import turns
from benchmarks.shared.checkpoint import make_checkpoint
from benchmarks.shared.options import turns_parser
from benchmarks.shared.records import write_record
from benchmarks.shared.turns import System, Turn

PHOTO = "photo.jpg"


def ours(folder: Path, **settings: Any) -> Turn:
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder)
    compute = mp.Compute(**settings)
    return lambda: mp.encode_image(params, folder / PHOTO, config=config, compute=compute).block_until_ready()


def reference(folder: Path) -> Turn:
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    import multipatch_jax as mp
    from multipatch_reference import image_processor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    processor = image_processor(mp.presets.SMOLVLM_256M)

    def turn() -> object:
        inputs = processor(Image.open(folder / PHOTO), return_tensors="pt")
        with torch.inference_mode():
            return model.model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"])

    return turn


SYSTEMS: dict[str, System] = {
    "multipatch_jax": ours,
    "multipatch_jax, XLA alone": lambda folder: ours(folder, encoder="flax"),
    "transformers, sdpa": reference,
}


def main() -> None:
    args = turns_parser(__doc__, rounds=7, help="turns of each system, some 20 s each").parse_args()
    if args.worker:
        return turns.work(SYSTEMS, *args.worker)
    from benchmarks.shared.photo import photograph  # no system needs what it imports

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder)
        photograph(3000, 4000).save(folder / PHOTO, quality=92)
        times = turns.take_turns("benchmarks.pipeline", SYSTEMS, folder, args.rounds)
    for system in SYSTEMS:
        share = turns.ratio(times, system, "transformers, sdpa")
        print(f"{system:<34} {statistics.median(times[system]):6.2f} s   {share:5.2f} of the reference")
    packages = "jax jaxlib flax torch transformers numpy pillow".split()
    write_record("pipeline", packages, seconds=times)


if __name__ == "__main__":
    main()

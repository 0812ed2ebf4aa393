"""Measures an answer about a photograph on this CPU, and where its seconds go: `python -m benchmarks.answer`.

Needs the `bench` extra. The photograph is a JPEG of 3000 x 4000 pixels, 13 tiles. A question about it is answered with
64 tokens, the most likely one each time, by SmolVLM-256M's shapes with random weights. multipatch_jax and transformers
(sdpa) run in float32 and in bfloat16. There are four measures. Each starts from the file, and goes further than the
one before:

| measure | ends with | what it takes more is |
|---|---|---|
| tiles | the tiles, ready for the tower | preprocessing |
| tokens | the visual tokens | the tower and the connector |
| first | the first token of the answer | prefill: the prompt through the language model |
| answer | the last token | decoding: the 63 other tokens |

Every turn encodes the photograph anew. Our generator remembers the visual tokens of images that it has seen, so each
of its turns changes a pixel.

Each system has its own process and they take turns. Prints the medians of the answers' seconds, divided by those of
transformers in both dtypes, and of the parts; and writes benchmarks/records/answer.json.
"""

import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.shared import turns
from benchmarks.shared.chat_models import our_generator, their_model
from benchmarks.shared.options import turns_parser
from benchmarks.shared.photo import photograph
from benchmarks.shared.records import write_record
from benchmarks.shared.turns import Turn
from benchmarks.shared.whole_checkpoint import make_whole_checkpoint

MEASURES = ("tiles", "tokens", "first", "answer")
NEW_TOKENS = {"first": 1, "answer": 64}
PARTS = {"tiles": "preprocessing", "tokens": "tower", "first": "prefill", "answer": "decoding"}  # each one's last part
PHOTO = "photo.jpg"
PROMPT = 904  # tokens: 832 of the photograph's tiles, its markers, and the question
CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in this picture?"}]}]

# ---------------------------------------------------------------------------------------------------------------------
# The systems. Each reads the checkpoint from a folder, and its turn goes as far as the measure says.


def ours(measure: str, folder: Path, dtype: str) -> Turn:
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder, dtype=dtype)
    generator = our_generator(folder, dtype)

    def tiles() -> None:
        mp.tile_image(mp.load_image(folder / PHOTO), config.tiling).block_until_ready()

    def tokens() -> None:
        mp.encode_images(params, [folder / PHOTO], config=config)

    def answer() -> None:
        image = new_image(folder)
        (answer,) = generator.generate([CHAT], [image], max_new_tokens=NEW_TOKENS[measure])
        assert answer.num_encoded == 1
        assert answer.num_prompt_tokens == PROMPT
        assert len(answer.ids) == NEW_TOKENS[measure]

    return {"tiles": tiles, "tokens": tokens}.get(measure, answer)


NUMBERS = itertools.count()


def new_image(folder: Path) -> np.ndarray:
    """Loads the photograph, with a pixel that it had in none of the last 255 calls."""
    import multipatch_jax as mp

    image = mp.load_image(folder / PHOTO)
    image[0, 0, 0] = next(NUMBERS) % 256
    return image


def transformers(measure: str, folder: Path, dtype: str) -> Turn:
    import torch
    from PIL import Image

    model, processor = their_model(folder, dtype)

    def tiles() -> dict[str, torch.Tensor]:
        text = processor.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        return processor(text=text, images=[Image.open(folder / PHOTO)], return_tensors="pt")

    def tokens() -> None:
        inputs = tiles()
        with torch.inference_mode():
            model.model.get_image_features(inputs["pixel_values"], inputs["pixel_attention_mask"])

    def answer() -> None:
        inputs, new = tiles(), NEW_TOKENS[measure]
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        assert inputs["input_ids"].shape[1] == PROMPT
        assert ids.shape[1] == PROMPT + new

    return {"tiles": tiles, "tokens": tokens}.get(measure, answer)


DTYPES = ("bfloat16", "float32")
SYSTEMS: dict[str, Callable[[str, Path], Turn]] = {
    f"{name}, {dtype}": functools.partial(start, dtype=dtype)
    for name, start in {"multipatch_jax": ours, "transformers": transformers}.items()
    for dtype in DTYPES
}
TURNS = {
    f"{measure}, {system}": functools.partial(start, measure)
    for measure in MEASURES
    for system, start in SYSTEMS.items()
}

# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    args = turns_parser(
        __doc__, rounds=5, help="turns of each measure and system, up to half a minute each"
    ).parse_args()
    if args.worker:
        return turns.work(TURNS, *args.worker)
    together = [[f"{measure}, {system}" for measure in MEASURES] for system in SYSTEMS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_whole_checkpoint(folder)
        photograph(3000, 4000).save(folder / PHOTO, quality=92)
        times = turns.take_turns("benchmarks.answer", TURNS, folder, args.rounds, together)
    report(times)
    write_record("answer", "jax jaxlib flax torch transformers numpy pillow".split(), seconds=times)


def report(times: dict[str, list[float]]) -> None:
    """Prints the table."""
    columns = "".join(f" {part:>13}" for part in PARTS.values())
    print(f"{'seconds':<24} {'answer':>8} {'/ float32':>10} {'/ bfloat16':>10}{columns}")
    for system in SYSTEMS:
        answer = f"answer, {system}"
        to = [turns.ratio(times, answer, f"answer, transformers, {dtype}") for dtype in ("float32", "bfloat16")]
        columns = "".join(f" {seconds:13.2f}" for seconds in seconds_of_parts(times, system))
        print(f"{system:<24} {statistics.median(times[answer]):8.2f} {to[0]:10.2f} {to[1]:10.2f}{columns}")


def seconds_of_parts(times: dict[str, list[float]], system: str) -> list[float]:
    """The median of each part: what its measure took more than the one before, in each round."""
    rounds = np.array([times[f"{measure}, {system}"] for measure in MEASURES])
    return np.median(np.diff(rounds, axis=0, prepend=0), axis=1).tolist()


if __name__ == "__main__":
    main()

"""Write docs/inputs.md from the lists that the tests go through: `python -m tests.helpers.inputs > docs/inputs.md`."""

import sys
from collections.abc import Iterable

from multipatch_jax.checkpoint.hf_keys import IGNORED_EVERYWHERE, KEYS, REFUSED
from tests.helpers.image_files import FILES
from tests.helpers.layouts import LAYOUTS
from tests.image.test_load_arrays import FLOATS
from tests.image.test_load_files import SOURCES
from tests.image.test_load_pil import MODES
from tests.text.test_messages import WAYS

TEMPLATE = """# What is accepted

The tests have tried each entry of this page: `python -m tests.helpers.inputs > docs/inputs.md` makes it from their
lists. What is not listed is refused, with an error that says what to do.

## Images

`load_image`, and every function that takes an image, accepts

{sources}
* a PIL image of mode {modes};
* an array (H, W, C), C being 1, 3 or 4, of uint8, or of {floats} with values from 0 to 1: NumPy's, JAX's, or of any
  library whose arrays NumPy can read.

Files of these kinds are tried: {files}; HEIC needs `pillow-heif` (the extra `heic`). Pillow reads more. An image with
more pixels than `PIL.Image.MAX_IMAGE_PIXELS` gives a warning, and one with more than twice as many is refused.

`iter_encode_images`, `encode_images` and `text.encode_frames` take any iterable of these. They copy or read each image
before they ask for the next, so your generator may refill one buffer, or rewrite one file.

## Chats

A message is `{{"role": ..., "content": ...}}`. The content is a string or a list of parts:

* `{{"type": "text", "text": "..."}}`
* `{{"type": "image"}}`, which takes the next of the call's `images`
{ways}
* `{{"type": "video", "video": list of frames, "plan": VideoPlan}}`, or `"fps": number` in place of the plan; the plan
  may also be transformers' video metadata, with `fps`, `frames_indices` and `duration`

A message may have other keys if the chat template names them. An `http`, `https` or `ftp` address of an image is
refused. A part that the chat template does not write is an error.

## Keys of a checkpoint's JSON files

A key that is not in this table is refused unless its value is null. `from_pretrained(..., ignore_keys=("key",))`
ignores it. A key under *only one value* must have that value.

| section | read | only one value | ignored |
|---|---|---|---|
{keys}

Ignored in every section: {ignored}.

Refused: {refused}.

## Layouts of a checkpoint

{layouts}
* a retriever (ColIdefics3), with `linear` in place of `lm_head`;
* a tied model, whose file may hold the embeddings, `lm_head`, or both if they are equal;
* a folder that `save_pretrained` wrote.
"""


def main() -> None:
    """Print the page."""
    rows = [
        f"| {name} | {_code(one.read)} | {_code(f'{k} = {v!r}' for k, v in one.fixed.items())} | {_code(one.ignored)} |"
        for name, one in KEYS.items()
    ]
    page = TEMPLATE.format(
        sources=_items(f"{source};" for source in SOURCES),
        modes=_code(MODES),
        floats=_code(one.__name__ for one in FLOATS),
        files=", ".join(FILES),
        ways=_items(f"`{way}`" for way in WAYS),
        keys="\n".join(rows),
        ignored=_code(sorted(IGNORED_EVERYWHERE)),
        refused="; ".join(f"`{key}` ({reason})" for key, reason in REFUSED.items()),
        layouts=_items(f"{name}: {one.what};" for name, one in LAYOUTS.items()),
    )
    sys.stdout.write(page)


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _items(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


if __name__ == "__main__":
    main()

"""One text of a batch: its images and videos beside it, and its token ids."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan
from multipatch_jax.text.prompt import IMAGE, expand_prompt
from multipatch_jax.text.template import Spans
from multipatch_jax.text.video import VIDEO, VideoPlan, expand_video_prompt


class Sample(NamedTuple):
    """A text, given or rendered from a chat, before its images and videos are expanded.

    Attributes:
      text: with one `<image>` for each image and one `<video>` for each video.
      images: for each `<image>`, what `load_image` takes, or `messages.NEXT`.
      videos: for each `<video>`, its frames and their plan.
      spans: the [start, end) of what the assistant says, in the text; None if that is unknown.
    """

    text: str
    images: list[Any]
    videos: list[tuple[Sequence[Any], VideoPlan]]
    spans: Spans | None

    @property
    def order(self) -> list[str]:
        """For each place of the text, in order: "image" or "video"."""
        return [mark.strip("<>") for mark in re.findall(f"{IMAGE}|{VIDEO}", self.text)]


def tokenize(
    sample: Sample, plans: Sequence[TilePlan], config: ModelConfig, tokenizer: Any, bos_token: str | None
) -> tuple[list[int], list[int]]:
    """Expand the images and videos of a text, and tokenise it.

    As in the reference's `apply_chat_template`, a text that begins with the bos token gets no second one.

    Args:
      sample: the text.
      plans: of its images.
      config: the model's.
      tokenizer: a `tokenizers.Tokenizer`.
      bos_token: the text of the bos token; None if the checkpoint has none.

    Returns:
      (ids, mask): the mask is 1 for tokens of the spans, else 0.
    """
    try:
        sample.text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"A text must be valid Unicode, and one cannot be tokenised: {error}.") from None
    has_bos = bool(bos_token) and sample.text.startswith(bos_token)
    encoding = tokenizer.encode(_expand(sample, sample.text, plans, config), add_special_tokens=not has_bos)
    mask = np.zeros(len(encoding.ids), np.int32)
    first, last = np.array(encoding.offsets, int).reshape(-1, 2).T
    for span in sample.spans or ():
        start, end = (len(_expand(sample, sample.text[:place], plans, config)) for place in span)
        mask[(first < end) & (last > start)] = 1
    return encoding.ids, mask.tolist()


def _expand(sample: Sample, text: str, plans: Sequence[TilePlan], config: ModelConfig) -> str:
    """Expand `text`, which is the beginning of the sample's text or all of it."""
    expanded = expand_prompt(text, plans[: text.count(IMAGE)], config)
    return expand_video_prompt(expanded, [plan for _, plan in sample.videos[: text.count(VIDEO)]], config)

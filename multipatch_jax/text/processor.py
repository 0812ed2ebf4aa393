"""Turn texts or chats, with their images, into a padded batch of token ids: a checkpoint's chat template and tokenizer.

Needs the extra `text`: the libraries `tokenizers` and `jinja2`, imported at first use. Prompts are rendered and
tokenised as the reference does it (transformers 5.23).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from multipatch_jax.arguments import require_positive_or_none, require_type
from multipatch_jax.checkpoint import local_folder
from multipatch_jax.config import ModelConfig
from multipatch_jax.image import TilePlan, is_one_image, load_image, plan_tiles
from multipatch_jax.text.answers import answer_spans
from multipatch_jax.text.messages import NEXT, Chat, Messages, check_keys, read_messages
from multipatch_jax.text.packing import pad
from multipatch_jax.text.places import Rendered, render_whole
from multipatch_jax.text.prompt import IMAGE
from multipatch_jax.text.sample import Sample, tokenize
from multipatch_jax.text.template import Spans, render
from multipatch_jax.text.template_file import VIDEO_TEMPLATE, read_template
from multipatch_jax.text.tokenizer_files import SIDES, download, read_settings, read_tokenizer
from multipatch_jax.text.video import VIDEO

VIDEO_TOKENS = ("<|im_start|>", "<end_of_utterance>")  # VIDEO_TEMPLATE is for tokenizers that have them


class TextInputs(NamedTuple):
    """A batch of tokenised texts, with their images and videos.

    Attributes:
      input_ids: (B, S), with the markers and `<image>` tokens of every image and every frame.
      attention_mask: (B, S), 0 at padding and 1 elsewhere.
      images: the pixels of all images, in the order of their places in the texts.
      plans: the plan of each of the images.
      videos: the pixels of the frames of each video, in the order of their places in the texts.
      order: "image" or "video" for each of them, in the order of their places in the texts.
      assistant_mask: (B, S), 1 for what the assistant says: tokens within `{% generation %}` of the chat template or,
        if the template lacks that tag, the answers of each chat that ends with one (see `answers.py`). None if no text
        is such a chat.
    """

    input_ids: Int32[np.ndarray, "B S"]
    attention_mask: Int32[np.ndarray, "B S"]
    images: list[UInt8[np.ndarray, "H W 3"]]
    plans: list[TilePlan]
    videos: list[list[UInt8[np.ndarray, "H W 3"]]]
    order: list[str]
    assistant_mask: Int32[np.ndarray, "B S"] | None


@dataclasses.dataclass(frozen=True)
class Processor:
    """A checkpoint's tokenizer and chat template.

    Attributes:
      tokenizer: a `tokenizers.Tokenizer`.
      chat_template: Jinja source; None if the checkpoint has none.
      special_tokens: texts of special tokens by name, "bos_token", "eos_token" and the like; variables of the template.
      pad_token_id: fills the shorter texts of a batch; None if the checkpoint has none.
      padding_side: "left" or "right"; the default of calls.
    """

    tokenizer: Any
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pad_token_id: int | None = None
    padding_side: str = "right"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "Processor":
        """Read tokenizer.json, tokenizer_config.json and the chat template of a folder or hub id in HF's layout.

        A chat template is a program that its author wrote: load those of checkpoints that you trust.

        Args:
          name_or_path: as in `from_pretrained`.
          revision, token, cache_dir, local_files_only: for a hub id, as in `from_pretrained`.

        Raises:
          FileNotFoundError: the folder or id does not exist, or has no tokenizer.json.
          ValueError: `name_or_path` is no path, or a file is damaged.
          ImportError: the extra `text` is not installed.
        """
        try:
            import jinja2.sandbox  # noqa: F401 (needed later: a missing library fails here)
            import tokenizers  # noqa: F401
        except ImportError as error:
            raise ImportError(f'A Processor needs the extra "text" ({error}): install multipatch_jax[text].') from error
        hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        folder = local_folder(name_or_path) or download(str(name_or_path), **hub)
        tokenizer, settings = read_tokenizer(folder), read_settings(folder)
        special = settings.special_tokens
        pad_token_id = tokenizer.token_to_id(special["pad_token"]) if "pad_token" in special else None
        return cls(tokenizer, read_template(folder), special, pad_token_id, settings.padding_side)

    def render(self, chat: Chat, *, add_generation_prompt: bool | None = None) -> str:
        """Render a chat as a text in the format that the model was trained on, with one `<image>` for each image.

        Args:
          chat: messages {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}. A
            content may be a string. `text/messages.py` lists all forms of a part.
          add_generation_prompt: whether the text ends where the model's answer begins; None adds that prompt unless the
            last message is the assistant's.

        Raises:
          ValueError: the checkpoint has no template, the template refuses the messages, or it drops a part of them.
        """
        _check_switch(add_generation_prompt)
        return self._render(read_messages(chat), add_generation_prompt).text

    def _render(self, messages: Messages, add_generation_prompt: bool | None) -> Rendered:
        template = self.chat_template
        knows_videos = all(self.tokenizer.token_to_id(token) is not None for token in VIDEO_TOKENS)
        if messages.videos and VIDEO not in (template or "") and knows_videos:
            template = VIDEO_TEMPLATE
        if template is None:
            raise ValueError("This checkpoint has no chat template: pass texts instead of chats.")
        check_keys(messages, template)
        prompt = messages.plain[-1]["role"] != "assistant" if add_generation_prompt is None else add_generation_prompt
        run = functools.partial(render, template, special_tokens=self.special_tokens, add_generation_prompt=prompt)
        return render_whole(run, messages)

    def decode(self, ids: Any) -> str:
        """Return the text of generated ids (S,), without special tokens.

        Raises:
          ValueError: `ids` are not integers from 0, of one text.
        """
        found = np.asarray(ids)
        if found.ndim != 1 or (
            found.size and (found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**32)
        ):
            raise ValueError(f"ids must be integers from 0 of shape (S,), got {found.dtype} of shape {found.shape}.")
        return self.tokenizer.decode(found.tolist())

    def __call__(
        self,
        texts: Sequence[str | Chat],
        images: Sequence[Any] = (),
        *,
        config: ModelConfig,
        padding_side: str | None = None,
        max_length: int | None = None,
        add_generation_prompt: bool | None = None,
    ) -> TextInputs:
        """Load the images, expand the prompts and tokenise them.

        Args:
          texts: a list of texts, with one `<image>` for each of their images, and of chats, which are rendered first.
          images: anything that `load_image` takes, for each `<image>` of a text and each `{"type": "image"}` of a chat
            that does not bring its own. Either one flat list (or an array (B, H, W, 3)), in the order of their places,
            or a list of images for each text.
          config: the model's; its tiling decides how many tokens an image becomes.
          padding_side: "left" (to generate from a batch) or "right"; None is that of the processor.
          max_length: most tokens of a text; longer texts lose their end. None cuts nothing.
          add_generation_prompt: as in `render`, for the chats.

        Raises:
          ValueError: the numbers of images and their places differ; a part of a chat is not understood, or the template
            drops it; a cut would lose tokens of an image; a text has a `<video>`; texts need padding and there is no
            pad token; or the tokenizer does not belong to `config`.
          ImageError, FileNotFoundError: as `load_image`, with a note of the image's index.
        """
        require_type("config", config, ModelConfig)
        side = self.padding_side if padding_side is None else padding_side
        if side not in SIDES:
            raise ValueError(f'padding_side must be "left", "right" or None, got {side!r}.')
        _check_switch(add_generation_prompt)
        max_length = require_positive_or_none("max_length", max_length, "tokens")
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts or isinstance(texts[0], Mapping):
            raise ValueError("texts must be a list of at least one text or chat; for a single one, pass [text].")
        if self.tokenizer.token_to_id(IMAGE) != config.image_token_id:
            raise ValueError(
                f"The tokenizer must have {IMAGE} as the config's image_token_id {config.image_token_id}, got "
                f"{self.tokenizer.token_to_id(IMAGE)}: load both from one checkpoint."
            )
        samples = [self._read(text, add_generation_prompt) for text in texts]
        given = iter(_flatten(images, [sum(image is NEXT for image in sample.images) for sample in samples]))
        sources = [next(given) if image is NEXT else image for sample in samples for image in sample.images]
        pixels = [_load(image, f"image {index}") for index, image in enumerate(sources)]
        clips = [frames for sample in samples for frames, _ in sample.videos]
        videos = [
            [_load(frame, f"frame {index} of video {video}") for index, frame in enumerate(frames)]
            for video, frames in enumerate(clips)
        ]
        plans = [plan_tiles(image.shape[0], image.shape[1], config.tiling) for image in pixels]
        rows, masks, done = [], [], 0
        for number, sample in enumerate(samples):
            of_sample = plans[done : done + len(sample.images)]
            done += len(sample.images)
            ids, mask = tokenize(sample, of_sample, config, self.tokenizer, self.special_tokens.get("bos_token"))
            if max_length is not None and config.image_token_id in ids[max_length:]:
                needed = len(ids) - ids[::-1].index(config.image_token_id)
                raise ValueError(
                    f"A text must not be cut within its images: sample {number} has {len(ids)} tokens and its last "
                    f"image ends at {needed}, got max_length={max_length}. Raise it, or lower config.tiling.max_tiles."
                )
            rows.append(ids[:max_length])
            masks.append(mask[:max_length])
        has_spans = any(sample.spans is not None for sample in samples)
        if self.pad_token_id is None and len(set(map(len, rows))) > 1:
            raise ValueError(
                "Texts of several lengths need padding, and this checkpoint has no pad token: pass one text at a time, "
                "or use dataclasses.replace(processor, pad_token_id=...)."
            )
        return TextInputs(
            input_ids=pad(rows, side, self.pad_token_id or 0),
            attention_mask=pad([[1] * len(row) for row in rows], side, 0),
            images=pixels,
            plans=plans,
            videos=videos,
            order=[mark for sample in samples for mark in sample.order],
            assistant_mask=pad(masks, side, 0) if has_spans else None,
        )

    def _read(self, text: str | Chat, add_generation_prompt: bool | None) -> Sample:
        """Render a text or a chat, and say what stands in its places."""
        if isinstance(text, str):
            if VIDEO in text:
                raise ValueError(
                    f'A text has no frames for its {VIDEO}: pass a chat with {{"type": "video", "video": frames}}, or '
                    f"use expand_video_prompt and encode_frames."
                )
            return Sample(text, [NEXT] * text.count(IMAGE), [], None)
        messages = read_messages(text)
        rendered = self._render(messages, add_generation_prompt)
        spans = rendered.spans
        if spans is None and messages.plain[-1]["role"] == "assistant":
            spans = self._answer_spans(rendered.text, messages)
        return Sample(rendered.text, rendered.images, messages.videos, spans)

    def _answer_spans(self, text: str, messages: Messages) -> Spans | None:
        def render(plain, add_generation_prompt):
            return self._render(dataclasses.replace(messages, plain=plain), add_generation_prompt).text

        added = self.tokenizer.get_added_tokens_decoder().values()
        return answer_spans(text, messages.plain, render, [token.content for token in added if token.special])


def _check_switch(add_generation_prompt: Any) -> None:
    if add_generation_prompt is not None and not isinstance(add_generation_prompt, bool):
        raise ValueError(f"add_generation_prompt must be True, False or None, got {add_generation_prompt!r:.60}.")


def _flatten(images: Sequence[Any], places: list[int]) -> list[Any]:
    """Return all images as one list, after checking their number against the `<image>` places of the texts.

    A flat list is checked by its total, a list of lists by each text.

    Args:
      images: a flat list, an array of images, or a list for each text.
      places: the number of places of each text whose image is among `images`.
    """
    is_array = getattr(images, "ndim", 0) == 4  # of B images
    if is_one_image(images) or not (isinstance(images, Sequence) or is_array):
        raise ValueError("images must be a list of images; for a single one, pass [image].")
    images = list(images)
    nested = [isinstance(one, (list, tuple)) for one in images]
    if any(nested):
        found = [len(one) if is_list else 1 for one, is_list in zip(images, nested, strict=True)]
        if not all(nested) or found != places:
            raise ValueError(
                f"Each text must have one {IMAGE} for each of its images, got {places} {IMAGE} in {len(places)} texts "
                f"and images by text {found}: pass a list of images for every text, or all of them in one list."
            )
        return [image for one in images for image in one]
    if len(images) != sum(places):
        raise ValueError(
            f"The texts must have one {IMAGE} for each image, got {places} {IMAGE} by text, {sum(places)} in all, and "
            f"{len(images)} images."
        )
    return images


def _load(image: Any, name: str) -> UInt8[np.ndarray, "H W 3"]:
    try:
        return load_image(image)
    except (ValueError, FileNotFoundError) as error:
        error.add_note(f"This was {name}.")
        raise

"""Read the messages of a chat: take out its images and videos, and leave plain data for the chat template.

The parts of a message are those that transformers' chat templates take (5.23):

| part | meaning |
|---|---|
| `{"type": "text", "text": "..."}` | text; a content that is a string is one such part |
| `{"type": "image"}` | the next image of the call's `images` |
| `{"type": "image", "image": X}` | X: a PIL image, an array, bytes, a path, or a data: URI |
| `{"type": "image", "path": X}`, `"url"`, `"base64"` | a path; a path or a data: URI; the base64 of a file |
| `{"type": "image_url", "image_url": {"url": X}}` | as "url"; X may stand there without the inner object |
| `{"type": "video", "video": frames}` | frames chosen already, with `"plan": VideoPlan` or `"fps": number` |

Nothing is downloaded.
"""

import base64
import binascii
import dataclasses
import numbers
import os
import re
import urllib.parse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from multipatch_jax.text.prompt import IMAGE
from multipatch_jax.text.video import VIDEO, VideoPlan

Chat = Sequence[Mapping[str, Any]]
NEXT = object()  # stands for the next image of the call's `images`
PARTS = ("text", "image", "image_url", "video")
DEFAULT_FPS = 24.0  # the reference's, for frames without a rate
_IMAGE_KEYS = ("image", "url", "path", "base64")


@dataclasses.dataclass
class Messages:
    """A chat, taken apart.

    Attributes:
      plain: the messages in JSON's types, for a template. Images and videos are `{"type": "image"}` and so on.
      images: for each image and each `<image>` in a text, in order: what `load_image` takes, or NEXT.
      videos: for each video, in order: its frames and their plan.
    """

    plain: list[dict[str, Any]]
    images: list[Any]
    videos: list[tuple[Sequence[Any], VideoPlan]]


def read_messages(chat: Chat) -> Messages:
    """Take a chat apart.

    Raises:
      ValueError: a message or a part is not of the forms above; the error says which.
    """
    if isinstance(chat, (str, Mapping)) or not isinstance(chat, Sequence) or not chat:
        raise ValueError(f"A chat must be a list of at least one message, got {_kind(chat)}.")
    found = Messages([], [], [])
    for index, message in enumerate(chat):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(
                f'A chat\'s message must have a "role" and a "content", got {_kind(message)} as message {index}.'
            )
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, Sequence):
            raise ValueError(f"The content of message {index} must be a string or a list of parts, got {_kind(parts)}.")
        plain = [_read_part(part, f"part {number} of message {index}", found) for number, part in enumerate(parts)]
        found.plain.append({**{key: value for key, value in message.items() if key != "content"}, "content": plain})
    return found


def _read_part(part: Any, where: str, found: Messages) -> dict[str, Any]:
    """Add the images and videos of a part to `found`, and return the part without them."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in PARTS:
        got = f'"type": {kind!r}' if isinstance(part, Mapping) else _kind(part)
        raise ValueError(f'The "type" of {where} must be one of {", ".join(PARTS)}, got {got}.')
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f'The "text" of {where} must be a string, got {_kind(part.get("text"))}.')
        found.images += [NEXT] * part["text"].count(IMAGE)
        if VIDEO in part["text"]:
            raise ValueError(f'{where} has {VIDEO} in its text: make the video a part of its own, {{"type": "video"}}.')
        return dict(part)
    if kind == "video":
        found.videos.append(_video(part, where))
        return {"type": "video"}
    found.images.append(_image(part, where))
    return {"type": "image"}


def _image(part: Mapping[str, Any], where: str) -> Any:
    if part["type"] == "image_url":
        source = part.get("image_url")
        source = source.get("url") if isinstance(source, Mapping) else source
        if not isinstance(source, str):
            raise ValueError(f'The "image_url" of {where} must be {{"url": "..."}} or a string, got {_kind(source)}.')
        return _from_text(source, where)
    keys = [key for key in _IMAGE_KEYS if part.get(key) is not None]
    if len(keys) > 1:
        raise ValueError(f"{where} must name one image, got {' and '.join(keys)}.")
    if not keys:
        return NEXT
    source = part[keys[0]]
    if keys[0] == "base64":
        return _decode(source, where)
    return _from_text(source, where) if isinstance(source, str) else source


def _from_text(source: str, where: str) -> Any:
    """Return the image that a path, a file: URI or a data: URI stands for."""
    scheme = source[:8].partition(":")[0].lower() if ":" in source[:8] else ""
    if scheme in ("http", "https", "ftp"):
        raise ValueError(f"{where} is a link, {_short(source)}, and nothing is downloaded: pass the file or its bytes.")
    if scheme == "data":
        head, comma, content = source.partition(",")
        if not comma:
            raise ValueError(f"{where} must be a data: URI with its data after a comma, got {_short(source)}.")
        return _decode(content, where) if head.endswith(";base64") else urllib.parse.unquote_to_bytes(content)
    if scheme == "file":
        return urllib.parse.unquote(urllib.parse.urlsplit(source).path)
    return os.fspath(source)


def _decode(content: Any, where: str) -> bytes:
    try:
        return base64.b64decode("".join(content.split()) if isinstance(content, str) else content, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"The base64 data of {where} cannot be decoded: {error}.") from None


def _video(part: Mapping[str, Any], where: str) -> tuple[Sequence[Any], VideoPlan]:
    frames, plan, fps = part.get("video"), part.get("plan"), part.get("fps")
    is_frames = isinstance(frames, Iterable) and not isinstance(frames, (str, bytes, Mapping))
    if not is_frames or not len(frames := list(frames)):
        raise ValueError(
            f'The "video" of {where} must be its frames, a list of at least one image (see text.sample_frames), '
            f"got {_kind(part.get('video'))}."
        )
    if plan is not None:
        if not isinstance(plan, VideoPlan) or len(plan.indices) != len(frames):
            raise ValueError(
                f'The "plan" of {where} must be a VideoPlan of its {len(frames)} frames, got {_kind(plan)}.'
            )
        return frames, plan
    if fps is None:
        fps = DEFAULT_FPS
        warnings.warn(
            f'{where} has no "plan" and no "fps": its times are those of {fps:g} frames a second.', stacklevel=2
        )
    if not isinstance(fps, numbers.Real) or isinstance(fps, bool) or not 0 < fps < float("inf"):
        raise ValueError(f'The "fps" of {where} must be a positive number of frames per second, got {_kind(fps)}.')
    # Of a video that is known by its frames alone, the reference takes the time of the last as the duration.
    return frames, VideoPlan(tuple(range(len(frames))), float(fps), (len(frames) - 1) / float(fps))


def check_nothing_vanished(messages: Messages, rendered: str) -> None:
    """Raise a ValueError if a part of the chat is not in the text that the template made of it."""
    for kind, mark, wanted in (("image", IMAGE, len(messages.images)), ("video", VIDEO, len(messages.videos))):
        written = rendered.count(mark)
        if written != wanted:
            index = next(
                (i for i, one in enumerate(messages.plain) if any(part["type"] == kind for part in one["content"])), 0
            )
            raise ValueError(
                f"The chat template must write {mark} for each {kind} of a chat, got {written} for {wanted}, the first "
                f"in message {index}: the checkpoint's template does not know such parts; pass a text instead."
            )
    written_letters = _letters(rendered)
    for index, message in enumerate(messages.plain):
        for part in message["content"]:
            lines = part["text"].splitlines() if part["type"] == "text" else ()
            if not all(_letters(line) in written_letters for line in lines):
                raise ValueError(
                    f"The chat template must write every text of a chat, and it drops a text part of message {index} "
                    f"({_short(part['text'])}): pass a text instead of the chat."
                )


def _letters(text: str) -> str:
    """Return the letters and digits of a text in lower case: a template may strip, quote or capitalise a text."""
    return re.sub(r"\W", "", text).casefold()


def _short(text: str) -> str:
    """Return the beginning of a text that may be long, quoted."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _kind(value: Any) -> str:
    """Name a value without writing it whole."""
    if isinstance(value, Mapping):
        return f"an object with the keys {sorted(map(str, value))[:8]}"
    return _short(value) if isinstance(value, str) else type(value).__name__

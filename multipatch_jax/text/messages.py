"""Read the messages of a chat: take out its images and videos, and leave plain data for the chat template.

The parts of a message are those that transformers' chat templates take (5.23):

| part | meaning |
|---|---|
| `{"type": "text", "text": "..."}` | text; a content that is a string is one such part |
| `{"type": "image"}` | the next image of the call's `images` |
| `{"type": "image", "image": X}` | X: a PIL image, an array, bytes, a path, or a data: URI |
| `{"type": "image", "path": X}`, `"url"`, `"base64"` | a path; a path or a data: URI; base64 or a data: URI |
| `{"type": "image_url", "image_url": {"url": X}}` | as "url"; X may stand there without the inner object |
| `{"type": "video", "video": frames}` | frames chosen already, with `"plan"` or `"fps"`: number |

A plan is a `VideoPlan`, or has the reference's `fps`, `frames_indices` and `duration`.

Nothing is downloaded.
"""

import base64
import binascii
import dataclasses
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multipatch_jax.arguments import require_number
from multipatch_jax.text.video import VIDEO, VideoPlan

Chat = Sequence[Mapping[str, Any]]
"""A list of messages, such as `{"role": "user", "content": "..."}`."""
NEXT = object()  # stands for the next image of the call's `images`
_IMAGE_KEYS = ("image", "url", "path", "base64")
PARTS = {"text": ("text",), "image": _IMAGE_KEYS, "image_url": ("image_url",), "video": ("video", "plan", "fps")}
MAX_PATH = 4096
DEFAULT_FPS = 24.0  # the reference's, for frames without a rate


@dataclasses.dataclass
class Messages:
    """A chat, taken apart.

    Attributes:
      plain: the messages in JSON's types, for a template. Images and videos are `{"type": "image"}` and so on. What is
        None is left out.
      images: for each image part, in order: what `load_image` takes, or NEXT.
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
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(
                f'A chat\'s message must have a "role" and a "content", got {_kind(message)} as message {index}.'
            )
        plain = {key: value for key, value in message.items() if value is not None}
        content = plain.get("content")
        if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
            plain["content"] = [
                _read_part(part, f"part {number} of message {index}", found) for number, part in enumerate(content)
            ]
        elif isinstance(content, str):
            _check_text(content, f"The content of message {index}")
        elif content is not None or len(plain) < 2:  # a message that calls tools has no content
            raise ValueError(
                f"The content of message {index} must be a string or a list of parts, got {_kind(content)}."
            )
        found.plain.append(plain)
    return found


def check_keys(messages: Messages, template: str) -> None:
    """Raise a ValueError if a message has something, besides its role and content, that a template does not name."""
    for index, message in enumerate(messages.plain):
        for key in message.keys() - {"role", "content"}:
            if key not in template and "tojson" not in template:
                raise ValueError(
                    f"The chat template must read all of a message, and it does not know {_short(str(key))} of message "
                    f"{index}: leave that out."
                )


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{where} must be a string, got {_kind(text)}.")
    if VIDEO in text:
        raise ValueError(f'{where} has {VIDEO} in its text: make the video a part of its own, {{"type": "video"}}.')


def _read_part(part: Any, where: str, found: Messages) -> dict[str, Any]:
    """Add the images and videos of a part to `found`, and return the part without them."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str) or kind not in PARTS:
        got = f'"type": {kind!r}' if isinstance(part, Mapping) else _kind(part)
        raise ValueError(f'The "type" of {where} must be one of {", ".join(PARTS)}, got {got}.')
    given = {key for key, value in part.items() if value is not None and key != "type"}
    if not given <= set(PARTS[kind]):
        raise ValueError(
            f"A part of type {kind} may have {', '.join(PARTS[kind])}, got {sorted(map(str, given))[:8]} in {where}."
        )
    if kind == "text":
        _check_text(part.get("text"), f'The "text" of {where}')
        return {"type": "text", "text": part["text"]}
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
        if isinstance(source, bytes):
            source = source.decode("latin-1")
        if not isinstance(source, str):
            raise ValueError(f'The "base64" of {where} must be a text, got {_kind(source)}.')
        return _from_text(source, where) if source[:5].lower() == "data:" else _decode(source, where)
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
        content = urllib.parse.unquote_to_bytes(content)
        return _decode(content.decode("latin-1"), where) if head.lower().endswith(";base64") else content
    if scheme == "file":
        return urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
    if len(source) > MAX_PATH:  # its error would repeat it
        raise ValueError(
            f"{where} must be a path or a URI, got a text of {len(source)} characters, {_short(source)}: pass base64 "
            f'as {{"type": "image", "base64": ...}}.'
        )
    return source


def _decode(content: str, where: str) -> bytes:
    """Decode base64, in lines or not."""
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"The base64 data of {where} cannot be decoded: {error}.") from None


def _video(part: Mapping[str, Any], where: str) -> tuple[Sequence[Any], VideoPlan]:
    frames: Any = part.get("video")
    plan, fps = part.get("plan"), part.get("fps")
    # Not any iterable: a generator may refill one buffer.
    if not (isinstance(frames, (list, tuple)) or getattr(frames, "ndim", 0) == 4) or not len(frames):
        raise ValueError(
            f'The "video" of {where} must be its frames, a list of at least one image (see text.sample_frames), '
            f"got {_kind(frames)}."
        )
    if plan is not None and fps is not None:
        raise ValueError(f'{where} must have a "plan" or "fps", got both.')
    if plan is not None:
        plan = _plan(plan, where) if isinstance(plan, Mapping) else plan
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
    require_number(f'The "fps" of {where}', fps, above=True)
    # Of a video that is known by its frames alone, the reference takes the time of the last as the duration.
    return frames, VideoPlan(tuple(range(len(frames))), float(fps), (len(frames) - 1) / float(fps))


def _plan(plan: Mapping[str, Any], where: str) -> VideoPlan:
    """Make a VideoPlan of the reference's metadata of a video; without a duration, the last frame's time is that."""
    fps: Any = plan.get("fps")
    duration: Any = plan.get("duration")
    try:
        indices = tuple(np.asarray(plan["frames_indices"]).tolist())
        return VideoPlan(indices, fps, indices[-1] / fps if duration is None else duration)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(f'The "plan" of {where} must have fps and frames_indices of numbers: {error}.') from None


def _short(text: str) -> str:
    """Return the beginning of a text that may be long, quoted."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _kind(value: Any) -> str:
    """Name a value without writing it whole."""
    if isinstance(value, Mapping):
        return f"an object with the keys {sorted(map(str, value))[:8]}"
    return _short(value) if isinstance(value, str) else type(value).__name__

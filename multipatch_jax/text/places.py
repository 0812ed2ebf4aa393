"""Find where a chat template writes the parts of a chat, and refuse a template that drops one of them.

The template runs once with a number in place of each text. What it writes then shows which texts it takes, and in which
order images, videos and texts stand. A text itself would not show that: a short one is found anywhere, and a template
may strip or replace what a text holds.
"""

import contextlib
import difflib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from multipatch_jax.text.messages import NEXT, Messages
from multipatch_jax.text.prompt import IMAGE
from multipatch_jax.text.template import Spans
from multipatch_jax.text.video import VIDEO

MARKS = {"image": IMAGE, "video": VIDEO}
NUMBER = "\ue000{}\ue001"  # in characters for private use, which no template writes by itself
_WRITTEN = re.compile(rf"({IMAGE})|({VIDEO})|\ue000(\d+)\ue001")
Render = Callable[[list[dict[str, Any]]], tuple[str, Spans | None]]


class Rendered(NamedTuple):
    """The text of a chat.

    Attributes:
      text: with one `<image>` for each image and one `<video>` for each video.
      spans: of `{% generation %}` blocks, as `template.render` returns them.
      images: for each `<image>`, in order: what `load_image` takes, or NEXT.
    """

    text: str
    spans: Spans | None
    images: list[Any]


def render_whole(render: Render, messages: Messages) -> Rendered:
    """Render a chat, with all its parts.

    A content that is a string is given to the template as it is, if the template writes it; else as one text part.

    Args:
      render: makes a text of messages.
      messages: the chat.

    Raises:
      ValueError: the template refuses the messages, or drops a part of them.
    """
    form, texts, written = messages.plain, [], []
    if any(isinstance(message.get("content"), str) for message in form):
        with contextlib.suppress(ValueError):  # the template may be one that wants parts
            texts, written = _try(render, form)
    if not written or not set(written) >= set(range(len(texts))):
        form = [_in_parts(message) for message in messages.plain]
        texts, written = _try(render, form)
    _check_written(written, form)
    own, images, expected = iter(messages.images), [], []
    for name in written:
        if isinstance(name, int):  # a text, which may hold `<image>` itself
            count = texts[name].count(IMAGE)
            images += [NEXT] * count
            expected += [IMAGE] * count
        else:
            images += [next(own)] if name == "image" else []
            expected.append(MARKS[name])
    text, spans = render(form)
    found = re.findall(f"{IMAGE}|{VIDEO}", text)
    if found != expected:
        raise ValueError(
            f"The chat template must write one {IMAGE} for each image and one {VIDEO} for each video, expected "
            f"{len(expected)}, got {len(found)}: pass a text instead of the chat."
        )
    return Rendered(text, spans, images)


def _try(render: Render, form: list[dict[str, Any]]) -> tuple[list[str], list[str | int]]:
    """Return the texts of messages, and what the template writes of them: numbers of texts, "image" and "video"."""
    texts: list[str] = []
    text, _ = render([_numbered(message, texts) for message in form])
    names = [("image" if one[1] else "video" if one[2] else int(one[3])) for one in _WRITTEN.finditer(text)]
    return texts, names


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("content"), str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _numbered(message: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """Return a message with a number in place of each of its texts, which are appended to `texts`."""

    def number(text: str) -> str:
        texts.append(text)
        return NUMBER.format(len(texts) - 1)

    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": number(content)}
    if content is None:
        return message
    parts = [{**part, "text": number(part["text"])} if part["type"] == "text" else part for part in content]
    return {**message, "content": parts}


def _check_written(written: list[str | int], form: list[dict[str, Any]]) -> None:
    """Raise a ValueError that names the first part which the template drops, or a mark that it adds."""
    wanted: list[tuple[str | int, int]] = []
    number = 0
    for index, message in enumerate(form):
        content = message.get("content") or []
        for kind in ["text"] if isinstance(content, str) else [part["type"] for part in content]:
            wanted.append((number if kind == "text" else kind, index))
            number += kind == "text"
    names = [name for name, _ in wanted]
    if set(written) >= set(range(number)) and all(written.count(kind) == names.count(kind) for kind in MARKS):
        return
    steps = difflib.SequenceMatcher(a=names, b=written, autojunk=False).get_opcodes()
    dropped = [place for step, start, end, *_ in steps if step in ("delete", "replace") for place in range(start, end)]
    if not dropped:
        raise ValueError(
            "The chat template must write no image and no video but those of the chat, and it adds one: pass a text "
            "instead of the chat."
        )
    name, index = wanted[dropped[0]]
    kind = "text" if isinstance(name, int) else name
    raise ValueError(
        f"The chat template must write every part of a chat, and it drops the {kind} part of message {index}: pass a "
        f"text instead of the chat, or another template."
    )

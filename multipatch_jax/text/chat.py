"""Find a checkpoint's chat template, and render messages with it as a text in the model's own format.

A template is a program by someone else. It runs in Jinja's sandbox and sees plain data only, but the sandbox does not
bound its time: load templates of checkpoints that you trust.

Needs the library `jinja2` (the extra `text`), imported at first use.
"""

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multipatch_jax.files import read_json

SETTINGS = "tokenizer_config.json"
# The files that may hold the template; the first one that has a template is used.
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", SETTINGS)
MAX_CHARACTERS = 2**24  # of a rendered text, and of a string that a template multiplies
Spans = list[tuple[int, int]]
# SmolVLMProcessor's own, which the reference takes for every chat with a video (transformers 5.23).
VIDEO_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% elif line['type'] == 'video' %}{{ '<video>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def read_template(folder: Path) -> str | None:
    """Return the chat template of a folder in HF's layout, or None if it has none.

    Raises:
      ValueError: a file is not UTF-8 or not JSON, or its template is not a text.
    """
    for name in TEMPLATES:
        path = folder / name
        if not path.is_file():
            continue
        if name.endswith(".jinja"):
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} must be a template in UTF-8: {error}.") from None
        template = read_json(path).get("chat_template")
        if isinstance(template, list):  # several templates, each with a name
            if not all(isinstance(one, dict) and {"name", "template"} <= one.keys() for one in template):
                raise ValueError(f'{path}: chat_template must be a list of {{"name": ..., "template": ...}}.')
            template = {one["name"]: one["template"] for one in template}.get("default")
        if template is None:
            continue
        if not isinstance(template, str):
            raise ValueError(f"{path}: chat_template must be a text, got {type(template).__name__}.")
        return template
    return None


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    """Compile a template, with the filters, globals and tags that the reference gives it (transformers 5.23)."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "+", "**"])

        def call_binop(self, context, operator, left, right):
            """Compute left * right, left + right or left ** right, unless the result is longer than MAX_CHARACTERS."""
            sizes = [len(one) if hasattr(one, "__len__") else one for one in (left, right)]
            if operator == "**" and all(isinstance(one, int) for one in sizes):
                length = sizes[0].bit_length() * sizes[1]
            elif sizes == [left, right]:  # two numbers
                length = 0
            else:
                length = sizes[0] * sizes[1] if operator == "*" else sum(sizes)
            if length > MAX_CHARACTERS:
                raise OverflowError(f"it makes a value of {length} characters")
            return super().call_binop(context, operator, left, right)

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` ... `{% endgeneration %}`: what stands between them is the assistant's."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller):
            return f"{START}{caller()}{END}"

    def refuse(message):
        raise jinja2.TemplateError(message)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "tools": None,
        "documents": None,
    }
    return environment.from_string(template)


START, END = "\ufdd0", "\ufdd1"  # around what the assistant says: Unicode's noncharacters, which no text may hold


def render(
    template: str, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str], add_generation_prompt: bool
) -> tuple[str, Spans | None]:
    """Render messages as text, as the reference does (transformers 5.23).

    Args:
      template: Jinja source.
      messages: in JSON's types; see `messages.py`.
      special_tokens: variables of the template, such as "bos_token".
      add_generation_prompt: whether the text ends where the model's answer begins.

    Returns:
      (text, spans): the [start, end) of each `{% generation %}` block in the text, None if the template has none.

    Raises:
      ValueError: the template refuses the messages, is broken, or makes a text of more than MAX_CHARACTERS.
    """
    import jinja2

    variables = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, **special_tokens}
    try:
        variables = json.loads(json.dumps(variables).replace("\\ufdd0", "\\ufffd").replace("\\ufdd1", "\\ufffd"))
        pieces, length = [], 0
        for piece in _compile(template).generate(**variables):
            length += len(piece)
            if length > MAX_CHARACTERS:
                raise OverflowError(f"its text is longer than {MAX_CHARACTERS} characters")
            pieces.append(piece)
    except (
        jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError,
        RecursionError, MemoryError,
    ) as error:  # fmt: skip
        reason = str(error) or type(error).__name__
        raise ValueError(f"The chat template must accept the messages of the chat, got its error: {reason}.") from error
    return _spans("".join(pieces), marked=bool(re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", template)))


def _spans(text: str, marked: bool) -> tuple[str, Spans | None]:
    """Take the marks of `{% generation %}` out of a text; return it and what they enclosed."""
    if not marked or START not in text:
        return text, [] if marked else None
    pieces, spans, length = [], [], 0
    for number, piece in enumerate(text.replace(END, START).split(START)):
        if number % 2:
            spans.append((length, length + len(piece)))
        pieces.append(piece)
        length += len(piece)
    return "".join(pieces), spans

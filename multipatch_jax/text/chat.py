"""A checkpoint's chat template: where it is found, and messages to the text that the model was trained on.

Needs the library `jinja2` (the extra `text`), imported at first use.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multipatch_jax.files import read_json

SETTINGS = "tokenizer_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", SETTINGS)  # the first that has one
Chat = Sequence[Mapping[str, Any]]


def read_template(folder: Path) -> str | None:
    """The template of a folder in HF's layout; None where it has none."""
    for name in TEMPLATES:
        if not (folder / name).is_file():
            continue
        if name.endswith(".jinja"):
            return (folder / name).read_text(encoding="utf-8")
        template = read_json(folder / name).get("chat_template")
        if isinstance(template, list):  # several by name
            template = {one["name"]: one["template"] for one in template}.get("default")
        if template is not None:
            return template
    return None


def render(template: str, chat: Chat, special_tokens: Mapping[str, str], add_generation_prompt: bool) -> str:
    """Messages as text, in the environment that the reference gives its templates (transformers 5.23).

    Raises:
      ValueError: the template refuses the messages, or is broken.
    """
    import jinja2
    import jinja2.sandbox

    def refuse(message):
        raise jinja2.TemplateError(message)

    # Templates are other people's programs: a sandbox, and plain data.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "tools": None,
        "documents": None,
    }
    try:
        messages = json.loads(json.dumps(list(chat)))
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **special_tokens
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f'A chat must be messages of a "role" and a "content" of plain texts and {{"type": "image"}}, the '
            f"images themselves being passed apart; this one was refused: {error}."
        ) from error

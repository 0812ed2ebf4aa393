"""Find a checkpoint's chat template, and render messages with it as a text in the model's own format.

Needs the library `jinja2` (the extra `text`), imported at first use.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multipatch_jax.files import read_json

SETTINGS = "tokenizer_config.json"
# The files that may hold the template; the first one that has a template is used.
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", SETTINGS)
Chat = Sequence[Mapping[str, Any]]


def read_template(folder: Path) -> str | None:
    """Return the chat template of a folder in HF's layout, or None if it has none."""
    for name in TEMPLATES:
        if not (folder / name).is_file():
            continue
        if name.endswith(".jinja"):
            return (folder / name).read_text(encoding="utf-8")
        template = read_json(folder / name).get("chat_template")
        if isinstance(template, list):  # several templates, each with a name
            template = {one["name"]: one["template"] for one in template}.get("default")
        if template is not None:
            return template
    return None


def render(template: str, chat: Chat, special_tokens: Mapping[str, str], add_generation_prompt: bool) -> str:
    """Render messages as text, with the filters and globals that the reference gives its templates (transformers 5.23).

    Args:
      template: Jinja source.
      chat: the messages; see `Processor.render`.
      special_tokens: variables of the template, such as "bos_token".
      add_generation_prompt: whether the text ends where the model's answer begins.

    Raises:
      ValueError: the template refuses the messages, or is broken.
    """
    import jinja2
    import jinja2.sandbox

    def refuse(message):
        raise jinja2.TemplateError(message)

    # A template is a program by someone else: run it in a sandbox, and give it plain data only (JSON types).
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
            f'A chat must be messages, each with a "role" and a "content" of plain texts and {{"type": "image"}} (pass '
            f"the images themselves as a separate argument); this one was refused: {error}."
        ) from error

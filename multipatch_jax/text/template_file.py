"""Find a checkpoint's chat template in its folder."""

from pathlib import Path

from multipatch_jax.files import read_json

SETTINGS = "tokenizer_config.json"
# The files that may hold the template; the first one that has a template is used.
TEMPLATES = ("chat_template.jinja", "chat_template.json", "processor_config.json", SETTINGS)
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

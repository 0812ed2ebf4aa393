"""The project's root, and its README with the examples in it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_examples(heading: str | None = None) -> list[str]:
    """The Python of the README's code blocks, all of them or those of one section."""
    text = README
    if heading is not None:
        section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, re.M | re.S)
        assert section, f"README.md has no section {heading!r}"
        text = section.group(1)
    examples = re.findall(r"```python\n(.+?)```", text, re.S)
    assert examples, f"README.md has no example in the section {heading!r}"
    return examples

"""The project's root, its README and the pages of docs/, and the examples in them."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# By path from the root. What the pages of the API say stands in docstrings.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}


def section(page: str, heading: str) -> str:
    """One section of a page, with the sections below it."""
    begin = re.search(rf"^(##+) {re.escape(heading)}\n", PAGES[page], re.M)
    assert begin, f"{page} has no section {heading!r}"
    rest = PAGES[page][begin.end() :]
    return re.split(rf"^#{{2,{len(begin.group(1))}}} ", rest, maxsplit=1, flags=re.M)[0]


def examples(page: str, heading: str | None = None, language: str = "python") -> list[str]:
    """The code blocks of a page, all of them or those of one section."""
    text = PAGES[page] if heading is None else section(page, heading)
    return re.findall(rf"```{language}\n(.+?)```", text, re.S)


def run_examples(
    page: str, names: dict[str, Any], changes: dict[str, Any], heading: str | None = None
) -> dict[str, Any]:
    """Runs the Python of a page from top to bottom, and returns its variables.

    Args:
      names: variables that the reader is told to have.
      changes: text of the page -> what stands for it here, such as a folder for a hub id.
    """
    code = "\n".join(examples(page, heading))
    assert code, f"{page} has no example"
    for said, done in changes.items():
        assert said in code, f"{page} does not say {said!r}"
        code = code.replace(said, str(done))
    exec(compile(code, page, "exec"), names)
    return names

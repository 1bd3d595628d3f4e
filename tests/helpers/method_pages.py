"""The methods whose text stands in docs/methods.md."""

import re
from pathlib import Path

from documents import FENCED, ROOT

PAGE = ROOT / "docs/methods.md"


def blocks(kind: str) -> list[str]:
    """The page's code blocks of a kind, `python` or `yaml`."""
    return [content for found, content in FENCED.findall(PAGE.read_text(encoding="utf-8")) if found == kind]


def write_methods(folder: Path) -> None:
    """Every method of the page as `local/methods/<name>.py` of a folder, as its first line says."""
    (folder / "local/methods").mkdir(parents=True)
    for content in blocks("python"):
        (folder / re.match(r'"""(local/methods/\w+\.py):', content).group(1)).write_text(content, encoding="utf-8")

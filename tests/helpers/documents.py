"""What the documents tell people to type: code blocks, and commands within sentences."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))
ALL_DOCUMENTS = ["README.md", "CONTRIBUTING.md", *DOCS, "bench/README.md", "local/minicorpus/README.md"]
# How to add things: tests of their own read these pages, write what they say, and run it.
READ_ELSEWHERE = ["docs/backbones.md", "docs/methods.md", "docs/tasks.md"]
DOCUMENTS = [name for name in ALL_DOCUMENTS if name not in READ_ELSEWHERE]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"[a-z_][a-z0-9_.]*(?:/[a-z0-9_.]+)+\.(?:py|sh|yaml|txt)")
PROGRAM = r"(?:\w+=\S+ )*(?:\S*\.sh|pelasr|python|pip|git|torchrun|srun|\.)"
INLINE = re.compile(rf"(?:\w+=.+; )?{PROGRAM} .+")


class Command(NamedTuple):
    """A command, and the folder that it is typed in, as seen from the clone."""

    text: str
    folder: str


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def sentences(name: str) -> str:
    """A document without its code blocks."""
    return FENCED.sub("", text_of(name))


def spans(name: str) -> list[str]:
    """What stands in backticks within sentences."""
    return re.findall("`([^`\n]+)`", sentences(name))


def files(name: str) -> list[str]:
    """Files of the repository that are named within sentences, but for those that a recipe's run writes."""
    found = [text for text in spans(name) if FILE.fullmatch(text)]
    return [text for text in found if text.split("/")[0] not in ("data", "dump", "exp")]


def links(name: str) -> list[str]:
    """Where links and pictures lead that are not on the web."""
    return [target for target in LINK.findall(sentences(name)) if not target.startswith("https://")]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(kind: str) -> list[str]:
    """The code blocks of a kind (`sh`, `python`, `yaml`, or empty) of the documents."""
    return [content for name in DOCUMENTS for found, content in FENCED.findall(text_of(name)) if found == kind]


def commands() -> list[list[Command]]:
    """Those of each `sh` block, without comments, and each of those within sentences, once. The block that is a script
    is none."""
    found = []
    for block in blocks("sh"):
        folder, typed = ".", []
        for line in block.replace("\\\n", " ").splitlines() if not block.startswith("#!") else []:
            line = re.sub(r"(^|\s+)#.*", "", re.sub(" +", " ", line)).strip()
            if line.startswith("cd "):
                folder = line.removeprefix("cd ")
            elif line:
                typed.append(Command(line, folder))
        found.append(typed)
    for name in DOCUMENTS:
        typed = [text for text in spans(name) if INLINE.fullmatch(text)]
        found += [[Command(text, ".")] for text in typed if not re.fullmatch(r"pelasr \w+", text)]  # a verb's name
    return [typed for number, typed in enumerate(found) if typed and typed not in found[:number]]

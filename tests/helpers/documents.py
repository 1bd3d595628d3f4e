"""What the documents tell people to type: code blocks, and commands within sentences."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "bench/README.md", "local/minicorpus/README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = r"(?:\w+=\S+ )*(?:\S*\.sh|pelasr|python|pip|git|torchrun|srun|\.)"
INLINE = re.compile(rf"(?:\w+=.+; )?{PROGRAM} .+")


class Command(NamedTuple):
    """A command, and the folder that it is typed in, as seen from the clone."""

    text: str
    folder: str


def blocks(kind: str) -> list[str]:
    """The code blocks of a kind (`sh`, `python`, `yaml`, or empty) of all documents."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    return [content for text in texts for found, content in FENCED.findall(text) if found == kind]


def commands() -> list[list[Command]]:
    """Those of each `sh` block, without comments, and each of those within sentences, once. The block that is a script
    is none."""
    found = []
    for block in blocks("sh"):
        folder, typed = ".", []
        for line in block.replace("\\\n", " ").splitlines() if not block.startswith("#!") else []:
            line = re.sub(r"\s+#.*", "", re.sub(" +", " ", line)).strip()
            if line.startswith("cd "):
                folder = line.removeprefix("cd ")
            elif line:
                typed.append(Command(line, folder))
        found.append(typed)
    for name in DOCUMENTS:
        sentences = FENCED.sub("", (ROOT / name).read_text(encoding="utf-8"))
        spans = [text for text in re.findall("`([^`\n]+)`", sentences) if INLINE.fullmatch(text)]
        found += [[Command(text, ".")] for text in spans if not re.fullmatch(r"pelasr \w+", text)]  # a verb's name
    return [typed for number, typed in enumerate(found) if typed and typed not in found[:number]]

"""Errors a user can cure: the command line prints them as one line, without a traceback."""

BEGIN, END = 1200, 700  # characters of a longer message that are shown: it ends with the cure


class PelasrError(Exception):
    """Something the user can mend. The message names the file, line or utterance, and the cure.

    What cannot be printed is escaped: a name or a value of a file from anywhere must not drive a terminal, or fill it.
    """

    def __init__(self, message: str):
        super().__init__(_line(message))


class TooShortError(PelasrError):
    """Audio that is too short for a model."""


class DataError(PelasrError):
    """Bad data: `problems` has one line for each thing found, so that all can be mended at once."""

    def __init__(self, problems: str | list[str]):
        given = [problems] if isinstance(problems, str) else problems
        self.problems = ["\n".join(map(_line, problem.split("\n"))) for problem in given]
        Exception.__init__(self, "\n".join(self.problems))


def _line(message: str) -> str:
    text = printable(message)
    return text if len(text) <= BEGIN + END else f"{text[:BEGIN]} [...] {text[-END:]}"


def printable(text: str) -> str:
    """A text on one line, the characters that cannot be printed escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def brief(value: object, most: int = 40) -> str:
    """A value in a message: one line of at most `most` characters, those that cannot be printed escaped."""
    text = " ".join(str(value).split())
    return printable(text if len(text) <= most else f"{text[: most - 3]}...")

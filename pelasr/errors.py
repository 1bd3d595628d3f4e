"""Errors a user can cure: the command line prints them as one line, without a traceback."""


class PelasrError(Exception):
    """Something the user can mend. The message names the file, line or utterance, and the cure."""


class TooShortError(PelasrError):
    """Audio that is too short for a model."""


class DataError(PelasrError):
    """Bad data: `problems` has one line for each thing found, so that all can be mended at once."""

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def brief(value: object, most: int = 40) -> str:
    """A value in a message: one line of at most `most` characters, those that cannot be printed escaped."""
    text = " ".join(str(value).split())
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)

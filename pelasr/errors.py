"""Errors a user can cure: the command line prints them as one line, without a traceback."""


class PelasrError(Exception):
    """Something the user can mend. The message names the file, line or utterance, and the cure."""


class DataError(PelasrError):
    """Bad data: `problems` has one line for each thing found, so that all can be mended at once."""

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

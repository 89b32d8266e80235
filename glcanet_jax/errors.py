"""The one exception that means "the user can mend this": it is shown as a single line, never as a traceback."""

import re

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # break lines, or tell a terminal what to do


class UserError(Exception):
    """Bad input. The message says what was got, what was wanted and what to do."""

    lines = False  # the message has several

    def __str__(self) -> str:
        """In one line: names of files and texts in them may hold anything."""
        text = super().__str__()
        return text if self.lines else CONTROLS.sub(lambda match: repr(match.group())[1:-1], text)


class Stopped(KeyboardInterrupt):
    """Work that was asked to stop, and is saved. The message says how to go on; ``code`` is the exit code of a command."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.code = 128 + signal  # as shells count: 130 after Ctrl-C, 143 after SIGTERM

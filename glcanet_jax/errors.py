"""The one exception that means "the user can mend this": it is shown as a single line, never as a traceback."""


class UserError(Exception):
    """Bad input. The message says what was got, what was wanted and what to do."""


class Stopped(KeyboardInterrupt):
    """Work that was asked to stop, and is saved. The message says how to go on; ``code`` is the exit code of a command."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.code = 128 + signal  # as shells count: 130 after Ctrl-C, 143 after SIGTERM

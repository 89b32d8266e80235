"""The one exception that means "the user can mend this": it is shown as a single line, never as a traceback."""


class UserError(Exception):
    """Bad input. The message says what was got, what was wanted and what to do."""

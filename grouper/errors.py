"""The one exception that the command line turns into one line."""


class GrouperError(Exception):
    """Something the user can mend. The message says what was wrong, what was expected and what to do."""

"""The one exception a user is meant to see."""


class UserError(Exception):
    """A failure the user can mend.

    The message is a single line that says what is wrong and what to do about it. Commands print it
    on standard error, without a traceback, and exit with code 2.
    """

"""The one exception whose message is meant for the person at the command line."""


class UserError(Exception):
    """Something the user can put right: a wrong path, a missing column, an unreadable video.

    The command line prints the message as one line and leaves with exit code 2.
    """

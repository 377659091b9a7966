"""What goes wrong: errors that are the user's to mend, and those of models."""


class UserError(Exception):
    """Something the user gave or asked for; told in one line without a traceback. The message says what was wrong, what
    was got, what is accepted and what to do. Rooms that import no other (eval/scores) keep the protocol by the
    attribute alone."""

    # of the command that meets it
    exit_status = 2


class ModelError(UserError, ValueError):
    """Parts that do not belong together, or a directory that holds no such model; the message names both sides."""

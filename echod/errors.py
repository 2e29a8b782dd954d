"""The base of the errors that an operator can correct: the text of each says how."""


class UserError(Exception):
    """A request of the operator cannot be fulfilled.

    The text is one line: it names the given value, the problem, and the remedy. Code that reports
    errors to the operator catches this class, and shows only the text. Any other exception there
    is a fault in a program, and is shown with its type and its place.

    Errors of a peer are not among these (`FramingError`, `ProxyError`, `TLSError`, `Busy`): an
    operator cannot correct them, and they end one connection.
    """


class NoThreadError(UserError):
    """The system allows no further thread."""

    def __init__(self, part: str, error: RuntimeError) -> None:
        """Set up.

        Args:
            part: which part of the daemon needs the thread.
            error: the error of its start.
        """
        super().__init__(
            f"no thread can be started for {part} ({error}): raise the limit, as by ulimit -u, or "
            "TasksMax= in a unit"
        )

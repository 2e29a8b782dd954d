"""The base of the errors that an operator can correct: the text of each says how."""


class UserError(Exception):
    """A request of the operator cannot be fulfilled.

    The text is one line: it names the given value, the problem, and the remedy. Code that reports
    errors to the operator catches this class, and shows only the text. Any other exception there
    is a fault in a program, and is shown with its type and its place.

    Errors of a peer are not among these (`FramingError`, `ProxyError`, `TLSError`, `Busy`): an
    operator cannot correct them, and they end one connection.
    """

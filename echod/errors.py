"""The base of the errors that an operator can mend: the text of each says how."""


class UserError(Exception):
    """The daemon was asked for something that cannot be had.

    The text is one line: it names what was given, says what is wrong with it, and what to do. Code
    that reports errors to the operator catches this class: it shows the text alone. Any other
    exception there is a fault in a program, and is shown with its type and its place.

    A peer's faults are no such errors (`FramingError`, `ProxyError`, `TLSError`, `Busy`): no
    operator can mend them, and they end one connection.
    """

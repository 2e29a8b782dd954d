"""An export: 200 MB for each line, piece by piece, as fast as the client reads.

$ twistd -n echod --handler export:export --framing line
"""

from collections.abc import Iterator

ROW = b"x" * 1000
ROWS = 200_000


def export(message: bytes) -> Iterator[bytes]:
    for _ in range(ROWS):
        yield ROW

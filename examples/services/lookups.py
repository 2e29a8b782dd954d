"""Look words up in an SQLite database, with a connection for each thread.

Run: twistd -n echod --handler lookups:lookups:path=words.db
"""

import sqlite3
from collections.abc import Iterator

import echod


@echod.service(concurrency="defer-to-thread", framing="line", banner=b"Which word?")
def lookups(service: echod.Service, *, path: str) -> Iterator[object]:
    """Answers each word with its meaning."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    threads = echod.PerThread(connect, sqlite3.Connection.close)
    threads.get().execute("SELECT word, meaning FROM words LIMIT 1")  # or the start fails

    def look_up(message: bytes) -> bytes:
        word = message.decode(errors="replace")
        found = threads.get().execute("SELECT meaning FROM words WHERE word = ?", [word])
        return next((meaning.encode() for (meaning,) in found), b"unknown")

    yield look_up

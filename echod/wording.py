"""Words that depend on a number."""


def plural(count: int, one: str, many: str) -> str:
    """Return `one` where `count` is 1, else `many`: the words that go with that number."""
    return one if count == 1 else many

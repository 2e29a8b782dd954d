"""Where other branches still find what has moved to `tests.daemon`."""

from tests.daemon import *  # noqa: F403

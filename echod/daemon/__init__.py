"""The daemon: the parts put together, the process, its start, its watching and its end."""

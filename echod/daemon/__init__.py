"""The daemon: the composition of the parts, the process, its start, its monitoring and its end."""

"""Settings: which there are, how one is written, and the flags and the file they come from."""

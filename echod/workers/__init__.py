"""Several processes that serve the same listeners, and their supervisor (`--workers`)."""

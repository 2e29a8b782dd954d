"""Concurrency models: where a handler runs, and the threads that it may run in."""

"""Every fault of docs/reliability.md, done to the real daemon.

A test whose docstring begins with `Fault 17:` (or `Faults 41 and 42:`) is what holds that fault's
promise, wherever it is; the rest of the docstring says what is promised. `make docs` writes the
table from these docstrings and from `tests.faults.catalogue`.
"""

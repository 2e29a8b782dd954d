"""Hostile bytes for every parser.

Each target takes bytes, and raises if the parser does anything but parse them or refuse them with
the error it documents. `tests/faults/test_parsers.py` runs them all: with hypothesis, and in a
soak with atheris, which looks for inputs that reach code not reached before. One alone::

    python -m tests.faults.fuzz line 1000000
"""

"""Run one target under atheris: NAME, how many inputs, and more of libFuzzer's options."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["echod"], enable_loader_override=False):
    from tests.faults.fuzz.targets import TARGETS

name, runs, *options = sys.argv[1:]
atheris.Setup([sys.argv[0], f"-runs={runs}", "-max_len=512", *options], TARGETS[name])
atheris.Fuzz()

"""Declares the reactor to ``--reactor`` of twistd, twist and trial.

Declarations only: importing anything here would install a reactor before the one asked for.
"""

from twisted.application.reactors import Reactor

uvloop = Reactor(
    "uvloop",
    "echod.reactor",
    "uvloop's transports calling Twisted protocols directly (Linux).",
)

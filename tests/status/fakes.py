"""A service without one, for what shows its status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twisted.internet.address import IPv4Address

from echod.limits import Level
from echod.metrics import Metrics
from echod.tls import ServedCertificate

HERE = IPv4Address("TCP", "127.0.0.1", 8888)


@dataclass
class FakeConnection:
    figures: tuple[int, int, int] = (0, 0, 0)


@dataclass
class FakeFactory:
    metrics: Metrics = field(default_factory=Metrics)
    connections: list[Any] = field(default_factory=list)


@dataclass
class FakeListener:
    description: str = "tcp:8888"
    address: Any = HERE
    factory: FakeFactory = field(default_factory=FakeFactory)


@dataclass
class FakeLog:
    written: int = 7
    lost: int = 2
    suppressed: int = 3


@dataclass
class FakeSubject:
    listeners: list[FakeListener] = field(default_factory=lambda: [FakeListener()])
    ready: bool = True
    draining: bool = False
    suspended: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    pool: Any = None
    oldest_call: float = 0.0
    log_observer: FakeLog | None = None
    levels: list[Level] = field(default_factory=list)
    certificates: list[ServedCertificate] = field(default_factory=list)
    own_metrics: Any = None

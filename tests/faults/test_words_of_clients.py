"""Real clients and faults on purpose: the words of each are in docs/faults.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from echod.faults import FAULTS
from tests.faults.web_clients import CLIENTS, HANDLER
from tests.support.certificates import Authority
from tests.support.daemon import Daemon, starting
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "faults.md"
AUTHORITY = Authority("an authority")

OF_TLS = "Faults of TLS"
WORDS = "The words of clients"
ARRIVALS = ("refuse", "connect-timeout", "slow-accept")

# No client waits for longer than so many seconds; nor does the page say so of any.
PATIENCE_OF_CLIENTS = 1.0
PATIENT = 20.0


def table(heading: str) -> dict[str, dict[str, str]]:
    """Return the words of each client, by the text of the fault, from a part of the page."""
    part = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip().strip("`") for cell in row.strip("|").split("|")]
        for row in part.splitlines()
        if row.startswith("|")
    ]
    names = rows[0]
    return {
        row[0]: {name: cell for name, cell in zip(names, row, strict=True) if name in CLIENTS}
        for row in rows[2:]
    }


TABLES = {heading: table(heading) for heading in (WORDS, OF_TLS)}
FAULTS_SHOWN = [fault for rows in TABLES.values() for fault in rows]


def name_of(fault: str) -> str:
    return fault.partition(":")[0]


def address_of(fault: str) -> str:
    return f"127.0.1.{1 + FAULTS_SHOWN.index(fault)}"


class Server:
    """A daemon with all faults, each for clients of one address."""

    def __init__(self, running: Daemon, count: int) -> None:
        self.running = running
        found = running.wait_for(r"(?:Factory|\(TLS\)) starting on (\d+)", count)
        self._ports = [int(port) for port in found]

    def port(self, fault: str, secure: bool) -> int:
        """Return the port for clients with a fault: those before a connection have their own."""
        arrives = name_of(fault) in ARRIVALS
        return self._ports[2 * (arrives and 1 + ARRIVALS.index(name_of(fault))) + secure]

    def ask(self, folder: Path, client: str, fault: str, secure: bool) -> str:
        """Return the words of a client of a fault."""
        words = TABLES[OF_TLS if secure and fault in TABLES[OF_TLS] else WORDS][fault][client]
        waits = re.search("no end|timed out|[Tt]imeout", words) is not None
        patience = PATIENCE_OF_CLIENTS if waits else PATIENT
        port = self.port(fault, secure)
        return CLIENTS[client](folder, port, address_of(fault), secure, patience)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words")
    (path / "page.py").write_text(HANDLER)
    (path / "cert.pem").write_bytes(AUTHORITY.issue("shop", hosts=["shop.localhost"]))
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    tcp = "tcp:0:interface=127.0.0.1"
    both = (tcp, f"{tcp.replace('tcp', 'tls')}:certificate=cert.pem")
    listeners, flags = list(both), []
    for fault in FAULTS_SHOWN:
        comma = "," if ":" in fault else ":"
        if name_of(fault) not in ARRIVALS:
            flags += ["--fault", f"{fault}{comma}from={address_of(fault)}"]
            continue
        for listen in both:
            listeners.append(listen)
            flags += ["--fault", f"{fault}{comma}listener={len(listeners)}"]
    flags += [word for listen in listeners for word in ("--listen", listen)]
    with starting(folder) as start:
        running = start(
            *("--handler", "page:hello", "--no-banner", "--fault-seed", "7"),
            *("--drain-timeout", "0.1", *flags),
        )
        path = running.wait_for(r"wrong-certificate: the authority is in (\S+)")[0]
        (folder / "ca.pem").write_bytes(AUTHORITY.certificate + Path(path).read_bytes())
        yield Server(running, len(listeners))


@pytest.mark.timeout(240)  # Go compiles its library once
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_says_what_the_page_says(server: Server, folder: Path, client: str) -> None:
    """Fault 143: curl, openssl, Python and Go say of each fault what docs/faults.md says."""
    CLIENTS[client](folder, server.port("close", secure=False), "127.0.0.1", False, PATIENT)
    with ThreadPoolExecutor(4) as pool:
        # openssl speaks TLS only.
        said = {
            (heading, fault): pool.submit(
                server.ask, folder, client, fault, heading == OF_TLS or client.startswith("open")
            )
            for heading, rows in TABLES.items()
            for fault in rows
        }
    failures = [
        f"{fault}: {came.result()!r}"
        for (heading, fault), came in said.items()
        if not fits(TABLES[heading][fault][client], came.result())
    ]
    assert not failures, "\n".join(failures)


def fits(words: str, said: str) -> bool:
    """Return whether a client says what the page has, in which ... stands for anything."""
    pattern = re.escape(words).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, said, re.DOTALL) is not None


def test_the_log_names_the_fault_of_each_client_of_tls(server: Server, folder: Path) -> None:
    for fault in TABLES[OF_TLS]:
        server.ask(folder, "Python", fault, secure=True)
        server.running.wait_for(
            rf"Disconnected from {address_of(fault)}:.*faults: {name_of(fault)}\)"
        )


def test_the_page_has_every_fault_and_client() -> None:
    assert {name_of(fault) for fault in FAULTS_SHOWN} == FAULTS.keys()
    rows = [row for rows in TABLES.values() for row in rows.values()]
    assert all(list(row) == list(CLIENTS) for row in rows)

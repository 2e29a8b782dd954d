"""Three hosts behind the real haproxy, with etc/haproxy.cfg: restarted, cut off, slow."""

from __future__ import annotations

from pathlib import Path

from tests.faults.fleet import SERVERS, fleet
from tests.faults.scale import Scale
from tests.support.daemon import Start
from tests.support.waiting import block_until

FIRST, SECOND, THIRD = SERVERS.values()


def test_hosts_are_restarted_under_load(daemon: Start, tmp_path: Path, scale: Scale) -> None:
    """Fault 195: No conversation is lost: a client whose host has gone is given to another one,
    and one that is connected is answered before its connection ends.
    """
    with fleet(daemon, tmp_path) as hosts:
        for number in scale(ci=3, soak=10_000):
            hosts.restart(list(SERVERS.values())[number % 3])
            hosts.clients.go_on()
    assert hosts.clients.bad == {}, hosts.clients.errors
    assert hosts.clients.count["ended"]
    scale.note(str(dict(hosts.clients.count)))


def test_a_short_cut_costs_no_conversation(daemon: Start, tmp_path: Path, scale: Scale) -> None:
    """Fault 196: A conversation survives a network that comes back, and no byte is lost."""
    with fleet(daemon, tmp_path) as hosts:
        for _ in scale(ci=1, soak=2_000):
            hosts.network.cut(SECOND, until="quota until 3 kbytes")
            block_until(lambda: hosts.network.dropped(SECOND))
            hosts.clients.go_on()
            hosts.network.heal(SECOND)
    assert hosts.clients.bad == {}, hosts.clients.errors


def test_a_host_that_is_cut_off_keeps_no_client(
    daemon: Start, tmp_path: Path, scale: Scale
) -> None:
    """Fault 196: Only the conversations of a host that stays away are lost, each is told, and
    none is stuck; new clients go to other hosts, and come back to it later.
    """
    soon = {"tcp-ut 30s": "tcp-ut 1s", "inter 2s": "inter 100ms"}
    with fleet(daemon, tmp_path, changes=soon) as hosts:
        clients = hosts.clients
        for _ in scale(ci=1, soak=2_000):
            lost, downs = clients.count["lost"], hosts.proxy.log.count("two is DOWN")
            hosts.network.cut(SECOND)
            block_until(lambda downs=downs: hosts.proxy.log.count("two is DOWN") > downs)
            clients.go_on(20)
            hosts.network.heal(SECOND)
            served = hosts.served(SECOND)
            block_until(lambda served=served: hosts.served(SECOND) > served)
            # Each client had one conversation, at most, with that host.
            assert clients.count["lost"] - lost <= clients.most, clients.errors
    assert not clients.count["stuck"]


def test_a_slow_host_gets_fewer_clients(daemon: Start, tmp_path: Path) -> None:
    """Fault 197: No conversation with a slow host is lost, and the others get most clients."""
    with fleet(daemon, tmp_path) as hosts:
        hosts.restart(THIRD, "--fault", "delay:time=0.5")
        before = {address: hosts.served(address) for address in SERVERS.values()}
        hosts.clients.go_on(60)
        served = {address: hosts.served(address) - before[address] for address in before}
        assert served[THIRD] < served[FIRST] + served[SECOND]
    assert hosts.clients.bad == {}, hosts.clients.errors

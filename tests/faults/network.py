"""A network of a test's own: a namespace with a loopback interface that can be made bad."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.namespaces import within
from tests.support.needs import missing, tool
from tests.support.programs import Step, enter
from tests.support.waiting import PATIENCE


class Network:
    """A network namespace, kept by a process that sleeps in it.

    Attributes:
        keeper: the id of that process.
    """

    def __init__(self, keeper: int) -> None:
        self.keeper = keeper

    @property
    def namespace(self) -> Path:
        """The file of this network's namespace."""
        return Path(f"/proc/{self.keeper}/ns/net")

    @property
    def step(self) -> Step:
        """The step of a program into this network."""
        return enter(self.namespace)

    @property
    def within(self) -> list[str]:
        """The command that runs a command in this network."""
        return [tool("nsenter"), f"--net={self.namespace}"]

    def run(self, *command: str) -> str:
        """Run a command in this network; where the kernel lacks what it needs, it is missing."""
        done = subprocess.run(
            [*self.within, *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            missing(f"this kernel has not what a test needs: {' '.join(command)}: {done.stderr}")
        return done.stdout

    def set(self, name: str, value: str) -> None:
        """Set a kernel parameter, below net/ipv4."""
        self.run("sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{name}")

    def socket(self) -> socket.socket:
        """Return a TCP socket in this network, for clients."""
        made = within(self.namespace, socket.socket)
        made.settimeout(PATIENCE)
        return made

    def connect(self, running: Daemon) -> socket.socket:  # type: ignore[name-defined]
        """Connect to a daemon in this network."""
        connection = self.socket()
        connection.connect(("127.0.0.1", running.port))
        return connection


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a network, with its loopback interface up, and take it down."""
    up = f"{tool('ip')} link set lo up && echo up && exec sleep infinity"
    keeper = subprocess.Popen(
        [tool("unshare"), "--net", "sh", "-c", up],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert keeper.stdout is not None
    with keeper:
        try:
            said = keeper.stdout.readline()
            if said != "up\n":
                missing(
                    f"no network namespace can be made here: {said.strip()}: run the tests as "
                    "root, where unshare --net is permitted (in a container, CAP_SYS_ADMIN)"
                )
            yield Network(keeper.pid)
        finally:
            keeper.kill()


class LAN:
    """Networks of one host each, on a switch: a balancer's, and those of the hosts behind it.

    Attributes:
        balancer: the network of the balancer, which has the switch.
        hosts: the networks of the others, by their addresses.
    """

    def __init__(self, balancer: Network, hosts: dict[str, Network]) -> None:
        self.balancer = balancer
        self.hosts = hosts

    def cut(self, address: str, until: str = "") -> None:
        """Let no packet reach a host.

        Args:
            address: the host's.
            until: when it ends by itself, as nftables has it: `quota until 2 kbytes`.
        """
        self.hosts[address].run(tool("nft"), f"add rule inet cut input {until} counter drop")

    def dropped(self, address: str) -> int:
        """Return how many packets have not reached a host that is cut off."""
        rules = self.hosts[address].run(tool("nft"), "list ruleset")
        return sum(map(int, re.findall(r"counter packets (\d+)", rules)))

    def heal(self, address: str) -> None:
        """Let packets reach a host again."""
        self.hosts[address].run(tool("nft"), "flush chain inet cut input")


# Addresses for examples: RFC 5737.
BALANCER = "192.0.2.1"


@contextlib.contextmanager
def lan(addresses: list[str]) -> Iterator[LAN]:
    """Make a network for a balancer, and one for each of these addresses, on one switch."""
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(network())
        hosts = {address: stack.enter_context(network()) for address in addresses}
        ip = tool("ip")
        balancer.run(
            "sh", "-ec",
            f"{ip} link add switch type bridge; {ip} address add {BALANCER}/24 dev switch; "
            f"{ip} link set switch up",
        )  # fmt: skip
        for number, (address, host) in enumerate(hosts.items()):
            balancer.run(
                "sh", "-ec",
                f"{ip} link add port{number} type veth peer name eth0 netns {host.keeper}; "
                f"{ip} link set port{number} master switch up",
            )  # fmt: skip
            host.run(
                "sh", "-ec",
                f"{ip} address add {address}/24 dev eth0; {ip} link set eth0 up; "
                f"{tool('nft')} 'add table inet cut; "
                "add chain inet cut input { type filter hook input priority 0; }'",
            )  # fmt: skip
        yield LAN(balancer, hosts)

"""etc/Containerfile: each step is taken in a folder of its own, with no engine for containers."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clients import BANNER
from tests.support.needs import missing, needs_root, tool
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE, block_until
from tests.system.test_packaging import Environment, copy_source

# pip builds and installs.
pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]


def steps() -> list[tuple[str, str]]:
    """Return the instructions of etc/Containerfile, with their arguments."""
    text = (ROOT / "etc/Containerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [(name, arguments) for name, arguments in lines]


def only(name: str) -> str:
    """Return the arguments of an instruction that is there once."""
    (found,) = (arguments for each, arguments in steps() if each == name)
    return found


class Image:
    """The machine's files, with those that the steps change in memory, above them.

    Attributes:
        run: the command before a command that runs within.
        env: the environment of the steps.
    """

    def __init__(self, folder: Path) -> None:
        """Mount it, in a namespace that a process keeps.

        Args:
            folder: an empty one.
        """
        # The Python of the base image: nothing is installed there but what echod needs.
        environment = Environment(folder / "python")
        pip = environment.bin / "pip"
        python = environment.bin / "python"
        pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {python} "$@"\n')
        pip.chmod(0o755)
        # The build finds its tools here, and can ask no index.
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
            "PATH": f"{environment.bin}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_NO_COMPILE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        source, layer, root = (folder / name for name in ("source", "layer", "root"))
        for made in (source, layer, root):
            made.mkdir()
        copy_source(source)
        (target,) = re.findall(r"--mount=type=bind,target=(\S+),rw", only("RUN"))
        work = only("WORKDIR")
        mounts = f"""
            mount -t tmpfs tmpfs {layer}; mkdir {layer}/upper {layer}/work
            mount -t overlay overlay \
                -o lowerdir=/,upperdir={layer}/upper,workdir={layer}/work {root}
            mkdir -p {root}{target} {root}{work}
            mount --bind {source} {root}{target}
            for each in /proc /dev {folder}; do mount --rbind $each {root}$each; done
            ip link set lo up; echo up; exec sleep infinity
        """
        self._keeper = subprocess.Popen(
            [tool("unshare"), "--mount", "--net", "sh", "-ec", mounts],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._keeper.stdout is not None
        if (said := self._keeper.stdout.readline()) != "up\n":
            self.close()
            missing(f"no folders can be put over others here: {said}")
        keeper = str(self._keeper.pid)
        self.run = [
            *(tool("nsenter"), "--target", keeper, "--mount", "--net"),
            *(tool("chroot"), str(root)),
        ]

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command within."""
        return subprocess.run(
            [*self.run, *command],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    needs_root("put folders over those of the machine")
    made = Image(tmp_path)
    yield made
    made.close()


def test_every_step_works_and_the_image_serves_drains_and_tells_its_health(image: Image) -> None:
    command = only("RUN").split("rw ", 1)[1]
    done = image.call("/bin/sh", "-c", command)
    assert done.returncode == 0, done.stdout
    start = [*json.loads(only("ENTRYPOINT")), *json.loads(only("CMD"))]
    # Process 1, which drops the signals that it does not handle, without any privilege.
    bereft = ["setpriv", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    running = subprocess.Popen(
        [
            *image.run[:5],
            *(tool("unshare"), "--pid", "--fork", "--kill-child"),
            *image.run[5:],
            *("/bin/sh", "-c", f'cd {only("WORKDIR")} && exec "$@"', "sh", *bereft, *start),
        ],
        env=image.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert running.stdout is not None
        assert any("Socket now listening" in line for line in running.stdout)
        check = json.loads(only("HEALTHCHECK").split("CMD ", 1)[1])
        block_until(lambda: image.call(*check).returncode == 0)
        talk = "import socket; print(socket.create_connection(('127.0.0.1', 8888)).recv(100))"
        assert repr(BANNER) in image.call("python", "-c", talk).stdout
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()
        os.kill(int(children), signal.Signals[only("STOPSIGNAL")])
        said, _ = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
        running.communicate()
    assert "Received SIGTERM, shutting down." in said, said
    assert image.call(*check).returncode


def test_the_image_is_for_no_privileged_user_and_its_commands_need_no_shell() -> None:
    names = [name for name, _ in steps()]
    assert names[0] == "FROM"
    user, group = only("USER").split(":")
    assert int(user)
    assert int(group)
    # Root does what the user could not, before.
    assert names.index("RUN") < names.index("USER")
    ports = [int(port) for port in shlex.split(only("EXPOSE"))]
    assert ports == [8888, 9464]

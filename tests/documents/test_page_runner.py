"""A page that runs: what differs is found, and nothing of it is left running."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.documents.page import Page, ask_for_tools, verify_unit
from tests.documents.terminal import Network, Terminal, network, terminal, write_programs
from tests.support.needs import missing, tool
from tests.support.waiting import PATIENCE, block_until

Run = Callable[..., list[str]]

SERVER = """
import socket
with socket.create_server(("127.0.0.1", 8888)) as listener:
    while True:
        print("Ready", flush=True)
        client, address = listener.accept()
        with client:
            print("Connected with 127.0.0.1:%d" % address[1], flush=True)
            client.sendall(b"Hello\\n")
            while data := client.recv(100):
                client.sendall(b"OK..." + data)
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a page of this text; return what differs."""
    directory = tmp_path / "here"
    directory.mkdir()

    def run(text: str, patience: float = PATIENCE) -> list[str]:
        path = tmp_path / "page.md"
        path.write_text(text)
        with terminal(directory, tmp_path, patience) as here:
            page = Page(path, here)
            page.run()
        return page.differences

    return run


@pytest.fixture(params=["a network of its own", "other ports"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The beginning of a page with a server."""
    tool("nc")
    if request.param == "other ports":
        monkeypatch.setattr("shutil.which", lambda name: None)
    return (
        f"<!-- file: server.py -->\n```python{SERVER}```\n\n```\n$ python server.py\nReady\n```\n"
    )


def test_a_server_that_listens_may_go_on_to_start(run: Run) -> None:
    tool("nc")
    slow = """
import socket
with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
    first.bind("first")
    first.listen()
    sum(range(10_000_000))
    second.bind("second")
    second.listen()
    second.accept()
"""
    assert (
        run(
            f"<!-- file: slow.py -->\n```python{slow}```\n\n"
            "```\n$ python slow.py\n```\n\n```\n$ nc -NU second < /dev/null\n```\n"
        )
        == []
    )


def test_a_page_that_is_right_has_no_differences(run: Run) -> None:
    assert run("```\n$ printf 'a\\nb\\n'\na\nb\n$ true\n```\n\n```python\nprint()\n```\n") == []


@pytest.mark.parametrize(
    ("block", "difference"),
    [
        ("```\n$ echo a\nb\n```", "page.md:1: line 2: $ echo a\n- b\n+ a"),
        ("```\n$ echo a\n```", "page.md:1: line 2: $ echo a\n+ a"),
        ("```\n$ false\n```", "page.md:1: line 2: $ false\nexit status 1"),
        ("```sh\necho a; false; true\n```", "page.md:1: exit status 1\na"),
        ("```\na = 1\n```", "page.md:1: a block of no language: say behind the fence"),
        ("```perl\na\n```", "page.md:1: a block of perl: say behind the fence"),
        ("```python\nassert False\n```", "page.md:1: exit status 1\nTraceback"),
        ("```toml\nprot = 1\n```", "page.md:1: page.md:1: prot: there is no such key"),
        ("```yaml\na: [\n```", "page.md:1: "),
        ("```json\n{\n```", "page.md:1: "),
        ("```text\na\n```", "page.md:1: no server is running whose log this could be"),
        ("```ini\n[Socket]\n```", "page.md:1: say which unit of etc/systemd these lines are for"),
        (
            "<!-- in: examples/handlers.py -->\n```python\ndef shout(message): return b''\n```",
            "page.md:2: examples/handlers.py has not\ndef shout",
        ),
        ("<!-- any order -->\n```\n$ printf 'a\\na\\n'\na\n```", "page.md:2: line 3: $ printf"),
    ],
)
def test_a_block_that_is_wrong_is_named_by_its_line(run: Run, block: str, difference: str) -> None:
    (found,) = run(f"{block}\n\n```\n$ true\n```\n")
    assert found.startswith(difference)


def test_a_command_is_repeated_until_it_prints_what_is_shown(run: Run) -> None:
    more = "```\n$ echo a >> file; cat file\na\na\na\n```\n"
    assert run(f"<!-- eventually -->\n{more}") == []
    (found,) = run(f"<!-- eventually -->\n{more}", 0.2)
    assert found.startswith("page.md:2: line 3: $ echo a >> file")


def test_a_program_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.md"
    path.write_text("```\n$ echo 1 | jq .\n1\n```\n")
    ask_for_tools(path)
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    ended = pytest.fail.Exception, pytest.skip.Exception  # by whether this is CI
    with pytest.raises(ended, match="jq is not installed"):
        ask_for_tools(path)


def test_a_block_that_is_marked_does_not_run(run: Run) -> None:
    assert run("<!-- skip: it would fail -->\n```\n$ false\n```\n") == []


def test_lines_that_need_more_than_the_machine_has_are_left_out(run: Run) -> None:
    script = "```sh\nsystemctl status \\\n  echod\npip install .\ntrue\n```\n"
    assert run(f"<!-- without: pip, systemctl: need PyPI and systemd -->\n{script}") == []
    assert len(run(f"<!-- without: pip: needs PyPI -->\n{script}")) == 1


def test_a_page_that_installs_writes_to_folders_of_its_own(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    with terminal(tmp_path, tmp_path, layer=layer) as here:
        here.run(f"touch /etc/{tmp_path.name}")
        assert here.run(f"ls /etc/{tmp_path.name}").printed == [f"/etc/{tmp_path.name}"]
    assert not (Path("/etc") / tmp_path.name).exists()


@pytest.mark.parametrize("lacks", ["its programs", "the right to mount"])
def test_a_page_that_installs_does_not_run_where_it_would_change_the_machine(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks == "its programs":
        monkeypatch.setattr("shutil.which", lambda name: None)
    ended = pytest.fail.Exception, pytest.skip.Exception  # by whether this is CI
    nowhere = tmp_path / "nowhere"  # no layer can be mounted there
    with pytest.raises(ended), terminal(tmp_path, tmp_path, layer=nowhere) as here:
        here.run(f"touch /etc/{tmp_path.name}")
    assert not (Path("/etc") / tmp_path.name).exists()


def test_the_shell_stays_the_same(run: Run) -> None:
    assert run("```\n$ mkdir a\n$ cd a\n$ b() { pwd; }\n$ b\n/home/me/echod/a\n```\n") == []


def test_what_is_shown_stands_in_its_file(run: Run) -> None:
    block = "def shout(message: bytes) -> bytes:\n    return message.upper()"
    assert run(f"<!-- in: examples/handlers.py -->\n```python\n{block}\n```\n") == []


def test_a_server_goes_on_beside_clients(run: Run, server: str) -> None:
    talk = "<!-- typed: a -->\n```\n$ nc localhost 8888\nHello\na\nOK...a\n^C\n```\n\n"
    log = "```text\nConnected with 127.0.0.1:35000\n```\n\n"
    assert (
        run(f"{server}\n{talk}{log}```\n$ echo b | nc -N localhost 8888\nHello\nOK...b\n```\n")
        == []
    )


def test_what_a_client_sees_is_compared(run: Run, server: str) -> None:
    talk = "<!-- typed: a -->\n```\n$ nc localhost 8888\nHello\na\nOK...b\n^C\n```\n"
    (found,) = run(f"{server}\n{talk}")
    assert found.endswith("- OK...b\n+ OK...a")


def test_the_log_of_the_server_is_compared_to_its_end(run: Run, server: str) -> None:
    client = "<!-- $ echo b | nc -N localhost 8888 > /dev/null -->\n"
    log = "```text\nReady\nConnected with 127.0.0.1:35000\n^CKeyboardInterrupt\n```\n"
    assert run(f"{server}\n{client}\n{log}") == []
    (found,) = run(f"{server}\n{client}\n{log.replace('KeyboardInterrupt', 'SystemExit')}")
    assert "- SystemExit" in found


def test_one_server_ends_the_one_before_unless_it_is_beside_it(run: Run, server: str) -> None:
    again = "```\n$ python server.py\nReady\n```\n"
    assert run(f"{server}\n{again}") == []
    beside = "```\n$ python server.py\nTraceback (most recent call last):\n...\n```\n"
    assert run(f"{server}\n<!-- beside -->\n{beside}") == []
    (found,) = run(f"{server}\n<!-- beside -->\n{again}")
    assert "+ OSError: [Errno 98] Address already in use" in found


def test_nothing_of_a_page_is_left_running(run: Run) -> None:
    seconds = str(10_000_000 + os.getpid())  # which no other test run has
    assert run(f"```\n$ (trap '' INT TERM; exec sleep {seconds}) > /dev/null &\n```\n") == []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # other processes may end meanwhile
            assert seconds.encode() not in path.read_bytes()


def test_where_no_network_can_be_made_other_ports_are_put_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with network() as among:
        assert isinstance(among, Network)
        assert among.within == []
        assert not set(among.ports.values()) & set(among.ports)


def test_another_port_is_put_into_commands_that_say_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with network() as among:
        port = among.ports["8888"]
        here = Terminal(tmp_path, tmp_path, among, PATIENCE)
    first, *others = (int(among.ports[str(each)]) for each in range(7000, 7010))
    assert others == list(range(first + 1, first + 10))
    assert here.real("nc localhost 8888") == f"nc localhost {port}"
    assert here.real("make run") == f"make run PORT={port}"
    assert here.real("twistd -n echod --no-banner") == f"twistd -n echod --port {port} --no-banner"
    assert here.real("twistd -n echod --port 8888") == f"twistd -n echod --port {port}"
    assert here.real("echod serve m:f --no-banner") == f"echod serve m:f --port {port} --no-banner"
    (tmp_path / "a.toml").write_text('listen = ["tcp:8888"]')
    for elsewhere in ("--listen unix:echod.sock", "--check-config", "--config a.toml"):
        assert here.real(f"twistd -n echod {elsewhere}") == f"twistd -n echod {elsewhere}"


def test_systemd_checks_what_is_added_to_a_unit(tmp_path: Path) -> None:
    verify_unit("echod.socket", "[Socket]\nListenStream=443\n", tmp_path)
    with pytest.raises(Exception, match="Unknown key"):
        verify_unit("echod.socket", "[Socket]\nListenStraem=443\n", tmp_path)


# A handler that tells how its process was begun, and ends it.
PROBE = """
import json, os, sys
facts = {
    "arguments": sys.argv[1:],
    "environment": {name: os.environ.get(name) for name in ("A", "B", "PATH", "PWD", "HOME")},
    "added": sorted(name for name in os.environ if "FORK" in name),
    "folder": os.getcwd(),
    "leads": (os.getsid(0), os.getpgid(0)) == (os.getpid(), os.getpid()),
    "network": os.readlink("/proc/self/ns/net"),
    "parent": os.getppid(),
    "streams": [os.fstat(number).st_ino for number in range(3)][1:],
}
with open("/proc/self/cmdline") as file:
    forked = "fork_server" in file.read()
with open(os.environ["FACTS"], "a") as file:
    file.write(json.dumps([forked, facts]) + "\\n")
raise SystemExit(7)
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The folder of programs that wait to be forked."""
    folder = tmp_path / "programs"
    folder.mkdir()
    write_programs(folder)
    return folder


@pytest.fixture
def forking(tmp_path: Path, programs: Path) -> Iterator[Terminal]:
    """A terminal that forks programs; in its folder is the probe."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "probe.py").write_text(PROBE)
    with terminal(tmp_path, tmp_path, programs=programs) as here:
        if not here.forks:
            missing("programs of pages are forked in a network of their own: install iproute2")
        here.run(f"export FACTS={tmp_path}/facts")
        yield here


def facts(folder: Path) -> list[tuple[bool, dict[str, object]]]:
    return [json.loads(line) for line in (folder / "facts").read_text().splitlines()]


def test_a_program_that_is_forked_finds_what_an_executed_one_finds(
    tmp_path: Path, forking: Terminal
) -> None:
    forking.run("cd a")
    forking.run("export A='1 2'")
    program = "twistd -n echod --handler probe:handler --banner 'a  b' --port \"8888\""
    ended = [forking.run(command) for command in (f"B=$A {program}", f"B=$A exec {program}")]
    assert [command.process.poll() for command in ended] == [1, 1]
    assert all("SystemExit: 7" in command.printed[-1] for command in ended)
    (was_forked, forked), (was_not, executed) = facts(tmp_path)
    assert (was_forked, was_not) == (True, False)
    for each in (forked, executed):
        streams = each.pop("streams")
        assert isinstance(streams, list) and len(set(streams)) == 1
    assert forked == executed
    assert forked["folder"] == str(tmp_path / "a")
    assert forked["parent"] == os.getpid()


def test_the_exit_code_and_the_output_of_a_forked_program_are_its_own(forking: Terminal) -> None:
    right, wrong = forking.run("echod --version"), forking.run("echod --nonesuch")
    assert right.process.returncode == 0
    assert right.printed[0].startswith("echod ")
    assert wrong.process.returncode == 2
    assert wrong.printed[-1].startswith("echod: error: ")


@pytest.mark.parametrize(
    "command", ["echod --version | cat", "echod --version && true", "(echod --version)"]
)
def test_a_program_in_a_longer_command_is_executed(forking: Terminal, command: str) -> None:
    assert forking.run(command).printed == forking.run("echod --version").printed


def test_a_program_of_a_marked_block_is_executed(tmp_path: Path, forking: Terminal) -> None:
    forking.run("cd a")
    block = "```\n$ twistd -n echod --handler probe:handler\n...\n```\n"
    page = tmp_path / "page.md"
    page.write_text(f"{block}\n<!-- executed -->\n{block}")
    Page(page, forking).run()
    assert [forked for forked, _ in facts(tmp_path)] == [True, False]


def test_a_forked_server_ends_at_ctrl_c(forking: Terminal) -> None:
    tool("nc")
    server = forking.run("twistd -n echod")
    assert server is forking.server
    assert forking.run("echo happy | nc -N localhost 8888").printed[-1] == "OK...happy"
    forking.stop_server()
    assert "Server Shut Down." in server.printed[-1]


def test_nothing_of_a_forked_program_is_left_running(tmp_path: Path, forking: Terminal) -> None:
    forking.run("twistd echod --port 8888")  # it goes into the background
    pid = tmp_path / "twistd.pid"
    block_until(lambda: pid.exists() and pid.read_text())
    number = pid.read_text()  # while the file is there: twistd removes it when it ends
    forking.close()
    block_until(lambda: not Path("/proc", number).exists())


def test_where_no_network_can_be_made_programs_are_executed(
    tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    (tmp_path / "probe.py").write_text(PROBE)
    with terminal(tmp_path, tmp_path, programs=programs) as here:
        here.run(f"FACTS={tmp_path}/facts twistd -n --pidfile= echod --handler probe:x")
    assert [forked for forked, _ in facts(tmp_path)] == [False]

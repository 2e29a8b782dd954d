"""The daemon with `--workers`: real processes, sockets and signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from echod.workers.child import backoff
from tests.support.clients import connect, receive, receive_all
from tests.support.daemon import REACTOR, TERMINATED, Daemon, Start
from tests.support.needs import needs_root, not_here, tool
from tests.support.permissions import open_to_all, python_for_all
from tests.support.ports import free_port
from tests.support.programs import SCRIPTS, run
from tests.support.proxy_headers import line
from tests.support.served_workers import (
    HANDLER,
    START,
    Load,
    ask,
    is_alive,
    served_by,
    wait_until_served,
    write_handler,
)
from tests.support.service_manager import managing
from tests.support.tls_peer import client_context
from tests.support.waiting import PATIENCE, block_until


@pytest.fixture
def two(daemon: Start, tmp_path: Path) -> Daemon:
    """Two workers, whose handler says in which process it runs."""
    write_handler(tmp_path)
    running = daemon("--handler", "answers:who", "--workers", "2", "--drain-timeout", "10")
    wait_until_served(running, 2)
    assert running.port  # a worker tells it in its log: a stopped one would not
    return running


PLUGIN = """
from twisted.application.reactors import Reactor

mine = Reactor("mine", "own_reactor", "A reactor of another package.")
"""

OWN_REACTOR = """
from twisted.internet.main import installReactor
from twisted.internet.selectreactor import SelectReactor

class OtherReactor(SelectReactor):
    pass

def install() -> None:
    installReactor(OtherReactor())
"""


@pytest.mark.parametrize("name", ["asyncio", "poll", "mine"])
def test_workers_run_on_the_reactor_that_was_asked_for(
    daemon: Start, tmp_path: Path, name: str
) -> None:
    if REACTOR:
        not_here("all tests run on another reactor")
    (tmp_path / "own_reactor.py").write_text(OWN_REACTOR)
    (tmp_path / "twisted" / "plugins").mkdir(parents=True)
    (tmp_path / "twisted" / "plugins" / "mine.py").write_text(PLUGIN)
    write_handler(tmp_path)
    running = daemon(
        *("--handler", "answers:who", "--workers", "2"),
        options=(f"--reactor={name}",),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    wait_until_served(running, 2)


def test_a_worker_is_replaced_once_the_folder_of_the_daemon_is_there_again(
    daemon: Start, tmp_path: Path
) -> None:
    """Fault 170: If the folder in which the daemon runs has been removed, the log says so, and
    the successor of a killed worker starts as soon as there is one again.
    """
    write_handler(tmp_path)
    folder = tmp_path / "release"
    folder.mkdir()
    with managing(str(tmp_path / "manager")) as manager:
        running = daemon(
            *("--handler", "answers:who", "--workers", "1"),
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(tmp_path),
                "NOTIFY_SOCKET": manager.address,
            },
        )
        manager.wait_for("READY=1")  # before that, the start would fail
        first = wait_until_served(running, 1)[1]
        folder.rmdir()
        os.kill(first, signal.SIGKILL)
        running.wait_for(
            f"the folder in which the daemon runs, {folder}: No such file or directory"
        )
        folder.mkdir()
        second = wait_until_served(running, 2)[1]
        with connect(running) as client:
            assert ask(client) == second != first


def test_each_worker_serves_its_share_of_the_clients(two: Daemon) -> None:
    seen: Counter[int] = Counter()
    for _ in range(100):
        with connect(two) as client:
            seen[ask(client)] += 1
    assert set(seen) == set(served_by(two).values())
    assert two.process.pid not in seen
    # A fair draw of 100 has less than 20 for one of two once in 10^10 runs.
    assert min(seen.values()) >= 20


def test_the_log_tells_that_a_worker_serves_after_the_lines_of_its_start(two: Daemon) -> None:
    lines = list(two.lines)
    for number in (1, 2):
        begins = [
            at for at, one in enumerate(lines) if f"worker {number}] EchoFactory star" in one
        ]
        serves = [at for at, one in enumerate(lines) if f"worker {number} (process" in one]
        assert len(begins) == len(serves) == 1
        assert begins < serves


def test_what_a_killed_worker_had_not_accepted_goes_to_its_successor(two: Daemon) -> None:
    """Fault 170: Clients that wait in the queue of a killed worker are served by its successor."""
    first = served_by(two)
    for pid in first.values():
        os.kill(pid, signal.SIGSTOP)  # from now on every client waits in a queue
    waiting = [connect(two) for _ in range(20)]
    try:
        for client in waiting:
            client.sendall(b"hello\n")
        for pid in first.values():
            os.kill(pid, signal.SIGKILL)
        two.wait_for(r"was ended by SIGKILL; its successor starts now", 2)
        later = wait_until_served(two, 4)
        answers = {receive(client, len(b"%d hello\n" % later[1])) for client in waiting}
    finally:
        for client in waiting:
            client.close()
    assert answers <= {b"%d hello\n" % pid for pid in later.values()}
    assert not set(later.values()) & set(first.values())


def test_a_worker_that_gets_sigterm_drains_beside_its_successor(two: Daemon) -> None:
    """Fault 170: A worker that gets SIGTERM drains, and its successor serves meanwhile."""
    with connect(two) as client:
        pid = ask(client)
        client.sendall(b"wait\n")
        block_until(Path(two.directory, "waits").exists)
        os.kill(pid, signal.SIGTERM)
        # The handler blocks the loop, so that it drains only once the gate is open.
        Path(two.directory, "gate").touch()
        assert receive_all(client) == b"%d wait\n" % pid
    two.wait_for(r"drains; its successor starts")
    later = wait_until_served(two, 3)
    assert pid not in later.values()
    block_until(lambda: not is_alive(pid))


def test_sigterm_drains_all(two: Daemon) -> None:
    pids = served_by(two).values()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(two)) for _ in range(8)]
        for client in clients:
            ask(client)
        for client in clients:
            client.sendall(b"wait\n")
        block_until(Path(two.directory, "waits").exists)
        two.signal(signal.SIGTERM)
        two.wait_for("Received SIGTERM")
        Path(two.directory, "gate").touch()
        for client in clients:
            assert receive_all(client).endswith(b" wait\n")
    two.wait()
    assert two.process.returncode in TERMINATED
    assert not any(map(is_alive, pids))
    assert "Stopped" in two.lines[-3] + two.lines[-2] + two.lines[-1]


def test_a_second_signal_ends_all_at_once(two: Daemon) -> None:
    with connect(two) as client:
        ask(client)
        client.sendall(b"wait\n")
        block_until(Path(two.directory, "waits").exists)
        two.signal(signal.SIGTERM)
        two.wait_for("Received SIGTERM")
        two.signal(signal.SIGTERM)
        # Not after the drain's ten seconds, nor ever: the handler does not return.
        two.wait(8)
    assert not any(map(is_alive, served_by(two).values()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_drains_once(
    daemon: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """Fault 173: A signal that a terminal, or systemd, sends to every process is one drain."""
    write_handler(tmp_path)
    running = daemon("--handler", "answers:who", "--workers", "2", "--drain-timeout", "10")
    pids = wait_until_served(running, 2)
    with connect(running) as client:
        ask(client)
        client.sendall(b"wait\n")
        block_until(Path(tmp_path, "waits").exists)
        for pid in (running.process.pid, *pids.values()):
            os.kill(pid, number)
        running.wait_for(f"Received {number.name}")
        Path(tmp_path, "gate").touch()
        assert receive_all(client).endswith(b" wait\n")
    running.wait()


def test_a_signal_to_a_halted_group_loses_nothing(two: Daemon) -> None:
    """Fault 173: If every process is halted when the signal comes, nothing is lost."""
    pids = [two.process.pid, *served_by(two).values()]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(two)) for _ in range(4)]
        for client in clients:
            ask(client)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        clients += [stack.enter_context(connect(two)) for _ in range(20)]
        for client in clients:
            client.sendall(b"halted\n")
        # The workers go on before their supervisor, which could tell them that the service ends.
        for number in (signal.SIGTERM, signal.SIGCONT):
            for pid in reversed(pids):
                os.kill(pid, number)
        for client in clients:
            assert receive_all(client).endswith(b" halted\n")
    two.wait()
    assert two.process.returncode in TERMINATED


def test_workers_end_with_their_supervisor(two: Daemon) -> None:
    """Fault 173: If the supervisor dies, the workers end."""
    pids = served_by(two)
    two.process.kill()
    block_until(lambda: not any(map(is_alive, pids.values())))
    two.wait()


def test_a_service_whose_workers_cannot_start_says_why(tmp_path: Path) -> None:
    """Fault 171: If no worker can start, the daemon ends with the reason, and exit code 1."""
    write_handler(tmp_path)
    (tmp_path / "broken").touch()
    command = [SCRIPTS / "twistd", "-n", "--pidfile=", *REACTOR, "echod", "--port", "0"]
    ended = run(tmp_path, *command, "--handler", "answers:who", "--workers", "2")
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("echod: ")]
    assert len(said) == 1
    assert "this module is broken" in said[0]
    assert "Traceback" not in ended.stderr


def test_a_service_that_cannot_start_in_the_background_says_why_in_its_log(
    tmp_path: Path,
) -> None:
    write_handler(tmp_path)
    (tmp_path / "broken").touch()
    command = [SCRIPTS / "twistd", "--pidfile=p", "--logfile=log", *REACTOR, "echod", "--port=0"]
    ended = run(tmp_path, *command, "--handler", "answers:who", "--workers", "2")
    assert ended.returncode == 1
    # The parent process does not wait for the end of the pidfile, nor for the last line.
    block_until(lambda: not (tmp_path / "p").exists())
    why = re.compile(r"#critical\] .*this module is broken")
    block_until(lambda: why.search((tmp_path / "log").read_text()) is not None)


def test_a_first_worker_that_just_dies_is_named(tmp_path: Path) -> None:
    write_handler(tmp_path)
    (tmp_path / "dies").touch()
    command = [SCRIPTS / "twistd", "-n", "--pidfile=", *REACTOR, "echod", "--port", "0"]
    ended = run(tmp_path, *command, "--handler", "answers:who", "--workers", "2")
    assert ended.returncode == 1
    assert re.search(r"echod: worker \d was ended with exit code 7 before it served", ended.stderr)


def test_a_worker_that_cannot_start_again_is_tried_less_and_less_often(two: Daemon) -> None:
    """Fault 171: The start of a worker that fails is tried again, less and less often."""
    Path(two.directory, "dies").touch()
    os.kill(served_by(two)[2], signal.SIGKILL)
    two.wait_for(r"worker 2 was ended with exit code 7 before it served; .* starts in 0\.2 s")
    Path(two.directory, "dies").unlink()
    wait_until_served(two, 3)
    assert [backoff(failures) for failures in range(6)] == [0, 0, 0.1, 0.2, 0.4, 0.8]
    assert backoff(1000) == 30.0


def test_a_worker_that_stands_still_is_shown_killed_and_replaced(
    daemon: Start, tmp_path: Path
) -> None:
    """Fault 172: The log shows where the worker was; it is killed and replaced."""
    write_handler(tmp_path)
    running = daemon("--handler", "answers:who", "--workers", "2", "--worker-timeout", "2")
    wait_until_served(running, 2)
    with connect(running) as client:
        pid = ask(client)
        client.sendall(b"block\n")
        running.wait_for(rf"\(process {pid}\) has stood still for 2 s")
        running.wait_for(r'File ".*answers\.py", line \d+ in who')
        running.wait_for(rf"\(process {pid}\) was ended by SIGKILL")
        assert receive_all(client) == b""
    wait_until_served(running, 3)


def test_a_worker_that_is_stopped_is_killed_and_replaced(daemon: Start) -> None:
    """Fault 172: A worker that is stopped (SIGSTOP) is killed and replaced, too."""
    running = daemon("--workers", "2", "--worker-timeout", "1")
    pid = wait_until_served(running, 2)[1]
    os.kill(pid, signal.SIGSTOP)
    running.wait_for(rf"worker 1 \(process {pid}\) was ended by SIGKILL")
    wait_until_served(running, 3)


def test_new_settings_are_used_by_every_worker_or_by_none(daemon: Start, tmp_path: Path) -> None:
    write_handler(tmp_path)
    file = tmp_path / "echod.toml"
    file.write_text('banner = "one"\nworkers = 2\n')
    running = daemon("--config", "echod.toml")
    first = wait_until_served(running, 2)

    def banners() -> set[bytes]:
        seen = set()
        for _ in range(20):
            with connect(running) as client:
                seen.add(receive(client, 4))
        return seen

    assert banners() == {b"one\n"}
    file.write_text('banner = "two"\n')
    running.signal(signal.SIGHUP)
    running.wait_for("Reloaded in every worker; changed: banner")
    running.wait_for(r"worker \d\] Reloaded; changed: banner", 2)
    assert banners() == {b"two\n"}
    file.write_text('banner = "six"\nidle-timeout = "x"\n')
    running.signal(signal.SIGHUP)
    running.wait_for("Reload refused, nothing has changed: .*idle-timeout")
    # A worker that comes later has the settings in force, not those in the file.
    os.kill(first[1], signal.SIGKILL)
    wait_until_served(running, 3)
    assert banners() == {b"two\n"}


def test_settings_that_one_worker_cannot_use_are_used_by_none(
    daemon: Start, tmp_path: Path, certificate: Path
) -> None:
    """Fault 174: Settings that a worker cannot use are used by none."""
    mine = tmp_path / "mine.pem"
    mine.write_bytes(certificate.read_bytes())
    running = daemon("--workers", "2", "--listen", f"tls:0:certificate={mine}")
    wait_until_served(running, 2)
    mine.write_text("damaged")
    running.signal(signal.SIGHUP)
    running.wait_for("Reload refused, nothing has changed: .*mine.pem")
    assert "Reloaded" not in running.log


def test_sighup_to_every_process_is_one_reload(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "echod.toml").write_text("")
    running = daemon("--workers", "2", "--config", "echod.toml")
    pids = wait_until_served(running, 2)
    for pid in (*pids.values(), running.process.pid):
        os.kill(pid, signal.SIGHUP)
    running.wait_for("Reloaded in every worker; changed: nothing")
    assert all(map(is_alive, pids.values()))


def test_sigusr2_replaces_the_workers_under_load(two: Daemon) -> None:
    """Fault 174: SIGUSR2 replaces the workers under load; no client is refused."""
    first = served_by(two)
    write_handler(two.directory, HANDLER.replace('b"%d %s" %', 'b"%d  %s" %'))
    with Load(two) as load:
        two.signal(signal.SIGUSR2)
        two.wait_for("The workers have been replaced", patience=START)
        before = load.served
        block_until(lambda: load.served > before + 20)
    assert not load.refused
    assert load.broken == 0
    assert load.closed <= 4 * 2
    later = served_by(two)
    assert set(later) == set(first)
    assert not set(later.values()) & set(first.values())
    with connect(two) as client:
        client.sendall(b"new\n")
        assert client.recv(100).endswith(b"  new\n")


def test_new_code_that_cannot_start_leaves_the_old_one_serving(two: Daemon) -> None:
    """Fault 174: The old workers serve on, and the log says why."""
    first = served_by(two)
    Path(two.directory, "broken").touch()
    two.signal(signal.SIGUSR2)
    two.wait_for("this module is broken.*: the workers that serve go on", patience=START)
    with connect(two) as client:
        assert ask(client) in first.values()
    assert served_by(two) == first
    Path(two.directory, "broken").unlink()
    two.signal(signal.SIGUSR2)
    two.wait_for("The workers have been replaced", patience=START)


def test_the_log_has_whole_lines_with_the_number_of_the_worker(two: Daemon) -> None:
    with connect(two) as client:
        pid = ask(client, b"print\n")
    number = next(number for number, each in served_by(two).items() if each == pid)
    two.wait_for(rf"\[stdout#info, worker {number}\] a line of print$")
    two.wait_for(rf"\[echod#info, worker {number}\] a raw line$")


def test_a_line_of_json_has_the_number_of_the_worker(daemon: Start) -> None:
    running = daemon("--workers", "2", "--log-format", "json")
    wait_until_served(running, 2)

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in list(running.lines)]

    block_until(lambda: {1, 2} <= {line.get("worker") for line in lines()})
    assert all(line["message"] for line in lines())


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("--max-connections", b"Server busy: too many connections, try again later"),
        ("--max-connections-per-address", b"Server busy: too many connections from your address"),
    ],
)
def test_a_limit_holds_over_all_workers(
    daemon: Start, tmp_path: Path, limit: str, said: bytes
) -> None:
    """Fault 175: The limits on connections hold over all workers, and after one was killed."""
    write_handler(tmp_path)
    running = daemon("--handler", "answers:who", "--workers", "2", limit, "9")
    first = wait_until_served(running, 2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(running)) for _ in range(9)]
        answered = [ask(client) for client in clients]
        assert set(answered) <= set(first.values())
        with connect(running) as refused:
            assert receive_all(refused).startswith(said)
        # With a worker go the connections that it had.
        pid, count = Counter(answered).most_common(1)[0]
        os.kill(pid, signal.SIGKILL)
        wait_until_served(running, 3)
        for _ in range(count):
            ask(stack.enter_context(connect(running)))
        with connect(running) as refused:
            assert receive_all(refused).startswith(said)


def test_a_second_daemon_does_not_share_the_port(two: Daemon, tmp_path: Path) -> None:
    command = [SCRIPTS / "twistd", "-n", "--pidfile=", *REACTOR, "echod"]
    ended = run(tmp_path, *command, "--port", str(two.port), "--workers", "2")
    assert ended.returncode == 1
    assert re.search(r"echod: tcp:\d+: Bind failed\. Error Code : 98", ended.stderr)


def test_workers_share_a_unix_socket_and_listeners_behind_a_proxy_and_with_tls(
    daemon: Start, tmp_path: Path, certificate: Path
) -> None:
    write_handler(tmp_path)
    paths = {name: tmp_path / name for name in ("clear", "proxied", "tls", "both")}
    tls = f"certificate={certificate}"
    running = daemon(
        *("--handler", "answers:who", "--workers", "2"),
        *("--listen", f"unix:{paths['clear']}", "--listen", f"proxy:unix:{paths['proxied']}"),
        *("--listen", f"tls:unix:{paths['tls']}:{tls}"),
        *("--listen", f"proxy:tls:unix:{paths['both']}:{tls}"),
        *("--listen", "proxy:tcp:0:interface=127.0.0.1"),
    )
    pids = wait_until_served(running, 2)
    (port,) = set(running.wait_for(r"starting on (\d+)", 2))
    assert paths["clear"].stat().st_mode & 0o777 == 0o660
    for pid in (pids[1], None):
        for name, path in {**paths, "proxied at a port": None}.items():
            for _ in range(3):
                with contextlib.ExitStack() as stack:
                    if path is None:
                        client = stack.enter_context(connect(int(port)))
                    else:
                        client = stack.enter_context(socket.socket(socket.AF_UNIX))
                        client.settimeout(START)
                        client.connect(str(path))
                    if name in ("proxied", "both", "proxied at a port"):
                        client.sendall(line())
                    if name in ("tls", "both"):
                        client = stack.enter_context(client_context().wrap_socket(client))
                    assert ask(client) in served_by(running).values()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until_served(running, 3)
    running.signal(signal.SIGTERM)
    running.wait()
    assert not any(path.exists() for path in paths.values())


def test_workers_share_a_socket_of_systemd(daemon: Start, tmp_path: Path) -> None:
    write_handler(tmp_path)
    activate = tool("systemd-socket-activate")
    port = free_port()
    running = daemon(
        *("--handler", "answers:who", "--listen", "systemd:name=here", "--workers", "2"),
        under=(activate, f"--listen=127.0.0.1:{port}", "--fdname=here"),
    )
    running.wait_for("Listening on")
    with connect(port) as client:
        client.settimeout(START)
        assert ask(client) in wait_until_served(running, 2).values()


def test_tls_with_workers_gives_no_tickets(daemon: Start, certificate: Path) -> None:
    running = daemon("--workers", "2", "--listen", f"tls:0:certificate={certificate}")
    wait_until_served(running, 2)
    (port,) = set(running.wait_for(r"starting on (\d+)", 2))
    for version in ("-tls1_2", "-tls1_3"):
        told = subprocess.run(
            [tool("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", version, "-msg"],
            input=b"hello\n",
            capture_output=True,
            timeout=PATIENCE,
        ).stdout
        assert b"Finished" in told
        assert b"NewSessionTicket" not in told


def test_the_service_manager_hears_one_service(daemon: Start, tmp_path: Path) -> None:
    with managing(str(tmp_path / "manager")) as manager:
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "NOTIFY_SOCKET": manager.address,
            "WATCHDOG_USEC": "200000",
        }
        running = daemon("--workers", "2", env=environment)
        wait_until_served(running, 2)
        manager.wait_for("READY=1")
        manager.wait_for("WATCHDOG=1", 2)
        os.kill(served_by(running)[1], signal.SIGKILL)
        wait_until_served(running, 3)
        # Its queue was full meanwhile; it is not once these have come one by one.
        beats = sum("WATCHDOG=1" in message for message in manager.heard)
        manager.wait_for("WATCHDOG=1", beats + 14)
        running.signal()
        manager.wait_for("STOPPING=1")
        running.wait()
        told = [
            message[0]
            for message in manager.heard
            if not message[0].startswith(("WATCHDOG", "STATUS"))
        ]
        assert told == ["READY=1", "STOPPING=1"]
        assert f"MAINPID={running.process.pid}" in manager.heard[0]
        assert "STATUS=Serving; workers: 2 of 2" in manager.heard[0]


def test_workers_run_as_the_user_that_the_daemon_becomes(
    daemon: Start, tmp_path: Path, certificate: Path
) -> None:
    """Fault 187: A key that only root can read serves the workers, and their successors."""
    needs_root("become another user")
    open_to_all(tmp_path)
    write_handler(tmp_path)
    key = tmp_path / "key.pem"
    key.write_bytes(certificate.read_bytes())
    key.chmod(0o600)
    running = daemon(
        *("--workers", "2", "--handler", "answers:who"),
        *("--listen", f"tls:0:certificate={key}"),
        options=("--uid", "65534", "--gid", "65534"),
        under=python_for_all(tmp_path),
    )
    for pid in wait_until_served(running, 2).values():
        assert Path(f"/proc/{pid}").stat().st_uid == 65534
    (port,) = set(running.wait_for(r"starting on (\d+)", 2))
    os.kill(served_by(running)[1], signal.SIGKILL)
    serving = set(wait_until_served(running, 3).values())
    seen: set[int] = set()
    while seen != serving:
        with client_context().wrap_socket(connect(int(port))) as client:
            seen.add(ask(client))
    running.signal(signal.SIGHUP)
    running.wait_for("Reload refused, nothing has changed: .*Permission denied")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--concurrency", "serial"), "--workers contradicts --concurrency serial"),
        (("--fault", "delay"), "--fault and --workers"),
        (("--listen", "badtls:0"), "--listen badtls:0 and --workers"),
        (("--workers", "257"), "--workers: '257' is not auto, or a whole number from 0 to 256"),
    ],
)
def test_what_workers_cannot_do_is_refused(
    tmp_path: Path, flags: tuple[str, ...], why: str
) -> None:
    command = [SCRIPTS / "twistd", "-n", "--pidfile=", *REACTOR, "echod", "--workers", "2"]
    ended = run(tmp_path, *command, *flags)
    assert ended.returncode == 1
    assert why in ended.stderr + ended.stdout


def test_a_backlog_of_lines_is_written_before_the_end(daemon: Start, tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "import sys\n"
        "def talks(message):\n"
        "    for number in range(2000):\n"
        "        print('line', number)\n"
        "    return b'done\\n'\n"
    )
    running = daemon("--handler", "talks:talks", "--workers", "2", "--log-rate", "0")
    wait_until_served(running, 2)
    with connect(running) as client:
        client.sendall(b"talk\n")
        assert receive(client, 5) == b"done\n"
        running.signal(signal.SIGTERM)
        running.wait()
    numbers = [re.search(r"line (\d+)$", line) for line in running.lines]
    assert [int(match[1]) for match in numbers if match] == list(range(2000))

"""Process 1 reaps orphans, and takes no exit status that Twisted waits for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from tests.support.needs import needs_root, tool
from tests.support.waiting import PATIENCE

# Its own child ends before an orphan, or after it; then Twisted takes its own child's status.
SCRIPT = """
import json, os, subprocess, sys
from twisted.internet import process, reactor
from twisted.internet.protocol import ProcessProtocol
from echod.workers.orphans import reap_orphans

signals = []

class Own(ProcessProtocol):
    def processExited(self, reason):
        signals.append(reason.value.signal)

def ended(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

def own():
    pid = reactor.spawnProcess(Own(), "/bin/cat", ["cat"]).pid
    os.kill(pid, 9)
    ended(pid)

def orphan():
    # It ends only when its shell, which would reap it, has gone.
    reader, writer = os.pipe()
    command = "exec 3<&0; cat <&3 >/dev/null & echo $!"
    pid = int(subprocess.check_output(["/bin/sh", "-c", command], stdin=reader))
    os.close(reader)
    os.close(writer)
    ended(pid)

def count():
    return len(open("/proc/thread-self/children").read().split())

left = []
for begin in ([own, orphan], [orphan, own], [orphan, orphan, own, own], []):
    for each in begin:
        each()
    reap_orphans()
    process.reapAllProcesses()
    reap_orphans()
    left.append(count())
print(json.dumps([signals, left]))
"""


def test_an_orphan_is_reaped_and_a_child_of_twisteds_keeps_its_exit_status() -> None:
    needs_root("start a process 1")
    alone = [tool("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc"]
    said = subprocess.check_output([*alone, sys.executable, "-c", SCRIPT], timeout=PATIENCE)
    assert json.loads(said) == [[signal.SIGKILL] * 4, [0] * 4]

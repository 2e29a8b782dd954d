"""Processes: Twisted's, asyncio's and others, in any order."""

from __future__ import annotations

from .harness import program

PROGRAM = """
import asyncio, multiprocessing, os, signal, subprocess, sys
import echod.reactor

# Each order has a process of its own, which has no reactor before.
for order in sys.argv[1:]:
    if not (child := os.fork()):
        names = order.split()
        break
    if os.waitpid(child, 0)[1]:
        sys.exit(f"in the order {order}")
else:
    sys.exit()
echod.reactor.install()
from twisted.internet import reactor, task, threads, utils
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred

async def twisted():
    assert await utils.getProcessOutput("/bin/echo", ["twisted"]) == b"twisted\\n"

async def timer():
    await task.deferLater(reactor, 0.01)
    await twisted()
    await twisted()

async def thread():
    await threads.deferToThread(int)
    await twisted()

async def in_asyncio():
    child = await asyncio.create_subprocess_exec("/bin/echo", "asyncio", stdout=-1)
    assert (await child.communicate())[0] == b"asyncio\\n"
    assert child.returncode == 0

def asyncio_():
    return Deferred.fromFuture(asyncio.ensure_future(in_asyncio()))

async def blocking():
    assert subprocess.run(["/bin/echo"]).returncode == 0
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=[3])
    child.start()
    child.join()
    assert child.exitcode == 3

async def both():
    await DeferredList(
        [ensureDeferred(twisted()), asyncio_(), ensureDeferred(twisted()), asyncio_()] * 3,
        fireOnOneErrback=True,
    )

async def main(reactor):
    for name in names:
        await globals()[name]()
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    assert children == "", f"left behind: {children}"

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


def test_children_of_each_kind_are_waited_for() -> None:
    """Fault 78: The daemon waits for each subprocess, and none becomes a zombie, whether asyncio
    or Twisted starts them, in any order, and from a timer or a thread's result too.
    """
    orders = [
        "twisted asyncio_ twisted",
        "asyncio_ twisted asyncio_",
        "both both",
        "both blocking twisted blocking asyncio_",
        "timer",
        "thread",
        "asyncio_ timer thread asyncio_ timer",
    ]
    done = program(PROGRAM, *orders)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_descriptors_for_processes_they_are_waited_for_in_threads() -> None:
    """An old kernel has none, nor has a process that has used up its descriptors."""
    nowhere = "import os\ndef pidfd_open(pid): raise OSError\nos.pidfd_open = pidfd_open\n"
    done = program(nowhere + PROGRAM, "twisted asyncio_ both")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_that_was_waited_for_before_the_thread_looks_is_no_error() -> None:
    """Twisted looks itself when a child's pipes close, and may be quicker than the thread."""
    late = (
        "import os, threading, time\n"
        "def pidfd_open(pid): raise OSError\n"
        "os.pidfd_open = pidfd_open\n"
        "waitid = os.waitid\n"
        "def late(kind, pid, options):\n"
        "    while os.path.exists(f'/proc/{pid}'):\n"
        "        reactor.callFromThread(process.reapAllProcesses)\n"
        "        time.sleep(0.01)\n"
        "    return waitid(kind, pid, options)\n"
        "os.waitid = late\n"
        "import echod.reactor; echod.reactor.install()\n"
        "from twisted.internet import process, reactor, task, utils\n"
        "def join(value):\n"
        "    for thread in set(threading.enumerate()) - {threading.current_thread()}:\n"
        "        thread.join()\n"
        "    assert value == 0\n"
        "task.react(lambda reactor: utils.getProcessValue('/bin/true').addCallback(join))\n"
    )
    done = program(late)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_from_before_the_reactor_runs_is_waited_for() -> None:
    done = program(
        "import echod.reactor, sys; echod.reactor.install()\n"
        "from twisted.internet import reactor, protocol\n"
        "class Child(protocol.ProcessProtocol):\n"
        "    def processEnded(self, reason):\n"
        "        print(reason.value.exitCode)\n"
        "        reactor.stop()\n"
        "reactor.spawnProcess(Child(), '/bin/sh', ['sh', '-c', 'exit 3'])\n"
        "reactor.run(installSignalHandlers=False)\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")

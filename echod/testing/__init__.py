"""Test a handler: without a network, over real sockets, and by the rules that hold for any.

* `talk` calls a handler as the daemon does, without a network, on a virtual clock.
* `serving` serves a handler on a free port within this process, with every setting of the daemon.
* `check` runs a handler in each of its concurrency models, and checks that its replies do not
  depend on the network.

With pytest, the fixture `echod_server` is `serving` that ends with the test.
"""

from echod.testing.checking import check
from echod.testing.client import Connection
from echod.testing.serving import Server, serving
from echod.testing.talking import Conversation, TalkError, talk

__all__ = ["Connection", "Conversation", "Server", "TalkError", "check", "serving", "talk"]

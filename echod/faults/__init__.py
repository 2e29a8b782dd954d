r"""Faults on purpose: the grammar of `--fault`, the choice of connections, and each fault itself.

A fault is a stage in one direction of a connection: it takes items (a piece of data, the end of
the stream, an act such as a reset), each with the time at which it is due, and passes on others.
A `Course` is the stages of one direction, in their order.

Guarantees:

* A decision depends on the seed, the fault, the listener, the connection's number there, and the
  offset of a byte in its stream: never on how reads fell. Two runs in which clients connect in the
  same order get the same bytes and the same acts. Only `after=` with seconds depends on time.
* Every time is computed at once, when an item comes: a stage has no timer. Items stay in order,
  so no item is due before the one ahead of it.

Pure: `echod.connections.faulty` waits, reads and writes.
"""

from echod.faults.choice import Armed, Chosen, Course, FaultPlan, Faults, Pick
from echod.faults.grammar import FAULTS, FaultError, parse_fault
from echod.faults.items import Act, Direction, Item
from echod.faults.stage import Cutter, Reads, Rule, Stage

__all__ = [
    "FAULTS",
    "Act",
    "Armed",
    "Chosen",
    "Course",
    "Cutter",
    "Direction",
    "FaultError",
    "FaultPlan",
    "Faults",
    "Item",
    "Pick",
    "Reads",
    "Rule",
    "Stage",
    "parse_fault",
]

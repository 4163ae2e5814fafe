"""Keeps the books of a simulated fleet and says which promise was broken.

The numbers are those of docs/reliability.md: (1) an update is folded at most once; (2) what a
receipt says survives; (3) residual + in flight + folded = learned, and what was folded is in the
weights (`folded_sum.py`); (4) a device always has a whole release; (7) disk use is
bounded. Looked at after every step and every crash of every machine.
"""

from tools.simulation.learning.light_learning import Learning
from tools.simulation.machines.device_machine import DeviceMachine
from tools.simulation.machines.machine import Machine
from tools.simulation.machines.server_machine import ServerMachine
from tools.simulation.machines.timeline import Timeline
from tools.simulation.promises.device_books import DeviceBooks
from tools.simulation.promises.pace_law import PaceLaw
from tools.simulation.promises.server_books import ServerBooks
from tools.simulation.promises.trace import Trace

__all__ = ["Ledger"]


class Ledger:
    """The books of one fleet; an `Observer` of its machines.

    ``watched``: how many of the devices have books; promise 1 is checked for all of them.
    """

    def __init__(
        self,
        timeline: Timeline,
        learning: Learning,
        fleet: str,
        *,
        traced: bool,
        pace: PaceLaw,
        watched: int | None = None,
        feedback: str = "residual",
    ) -> None:
        self.trace = Trace(timeline, is_kept=traced)
        self.violations, self.counts = self.trace.violations, self.trace.counts
        self.devices = DeviceBooks(self.trace, learning, pace, watched=watched, feedback=feedback)
        size = learning.bundle.spec.shared_size
        self.server = ServerBooks(self.trace, self.devices, pace, fleet=fleet, size=size)

    # -- `Observer`

    def say(self, machine: str, what: str) -> None:
        self.trace.say(machine, what)

    def broken(self, machine: str, what: str) -> None:
        self.trace.broken(machine, what)

    def looked_at(self, machine: Machine) -> None:
        if isinstance(machine, DeviceMachine):
            self.devices.look(machine)
        elif isinstance(machine, ServerMachine):
            self.server.look(machine)

    def check_disk(self, machine: Machine, limit: int) -> None:
        """Promise 7: disk use is bounded."""
        used = machine.disk.used()
        self.counts["disk checks"] += 1
        if used > limit:
            self.broken(machine.name, f"{used} bytes on disk, {limit} are allowed")

"""The weather of a simulated fleet: what breaks when, by the rates of a plan and the seed."""

from collections.abc import Callable
from typing import Any

from tools.simulation.connectivity import Connectivity
from tools.simulation.fleet import Fleet
from tools.simulation.happenings import Happenings
from tools.simulation.machines.machine import EPOCH, Machine
from tools.simulation.machines.virtual_disk import untouched
from tools.simulation.machines.virtual_network import BrokerFaults
from tools.simulation.promises.ledger import Ledger
from tools.simulation.scenario.fault_plan import FaultPlan

__all__ = ["Weather"]

SHORT = 2048  # bytes that a disk has room for when it has none for parameters


class Weather:
    """Plans the faults of ``plan`` for a fleet, until its happenings are over."""

    def __init__(
        self,
        plan: FaultPlan,
        fleet: Fleet,
        happenings: Happenings,
        connectivity: Connectivity,
        ledger: Ledger,
    ) -> None:
        self.plan = plan
        self._fleet = fleet
        self._happenings = happenings
        self._connectivity = connectivity
        self._ledger = ledger
        self._timeline = happenings.timeline
        self._rng = self._timeline.generator("weather")
        self._operator = self._timeline.generator("operator")

    def begin(self) -> None:
        plan = self.plan
        self._fleet.network.faults = BrokerFaults(plan.drop, plan.double, plan.late, plan.damage)

        def every(per_day: float, action: Callable[[], None]) -> None:
            if per_day:
                self._happenings.repeat(86400 / per_day, action)

        for device in self._fleet.devices:
            every(plan.cuts, lambda d=device: self._cut(d))  # type: ignore[misc]
            every(plan.black_holes, lambda d=device: self._black_hole(d))  # type: ignore[misc]
            every(plan.outages, lambda d=device: self._outage(d))  # type: ignore[misc]
            every(plan.device_kills, lambda d=device: d.crash_soon(power_cut=False))  # type: ignore[misc]
            every(plan.device_power_cuts, lambda d=device: d.crash_soon(power_cut=True))  # type: ignore[misc]
            if plan.forgets:
                self._forget_later(device)
            if plan.lost_memories:
                self._lose_memory_later(device)
        server = self._fleet.server
        every(plan.cuts, lambda: self._cut(server))
        every(plan.server_kills, lambda: server.crash_soon(power_cut=False))
        every(plan.server_power_cuts, lambda: server.crash_soon(power_cut=True))
        every(plan.server_outages, self._server_outage)
        every(plan.broker_restarts, self._restart_broker)
        for machine in self._fleet.machines:
            machine.disk.faults.failing_reads = plan.failing_reads
            every(plan.full_disks, lambda m=machine: self._disk_trouble(m, "full", True))  # type: ignore[misc]
            every(
                plan.read_only_disks,
                lambda m=machine: self._disk_trouble(m, "read_only", True),  # type: ignore[misc]
            )
            every(
                plan.failing_disks,
                lambda m=machine: self._disk_trouble(m, "failing", plan.failing),  # type: ignore[misc]
            )
            every(plan.tight_disks, lambda m=machine: self._disk_trouble(m, "tight", SHORT))  # type: ignore[misc]
            every(plan.clock_jumps, lambda m=machine: self._jump(m))  # type: ignore[misc]

    def _forget_later(self, device: Machine) -> None:
        def once() -> None:
            if not self._happenings.are_over:
                self._ledger.server.operator.ask_to_forget(device.name)
                self._forget_later(device)

        gap_s = self._operator.expovariate(self.plan.forgets / 86400)
        self._timeline.after(gap_s, once)

    def _lose_memory_later(self, device: Machine) -> None:
        def once() -> None:
            if self._happenings.are_over:
                return
            with untouched():
                lost = sorted(device.disk.at.glob("codec/history-*"))
                for path in lost:
                    path.unlink()
            if lost:
                self._ledger.say(device.name, "its memory is lost")
            self._lose_memory_later(device)

        gap_s = self._operator.expovariate(self.plan.lost_memories / 86400)
        self._timeline.after(gap_s, once)

    def _cut(self, machine: Machine) -> None:
        if machine.link is not None:
            machine.link.cut()

    def _outage(self, device: Machine) -> None:
        if not device.line.up:
            return
        self._connectivity.set_line(device, up=False)
        length_s = self._rng.expovariate(1 / self.plan.outage_s)
        self._timeline.after(length_s, lambda: self._connectivity.set_line(device, up=True))

    def _black_hole(self, device: Machine) -> None:
        device.line.black_hole = True
        self._ledger.say(device.name, "black hole")
        link = device.link
        # the keepalive ends it after one and a half times its length
        self._timeline.after(90, lambda: link.cut("keepalive timeout") if link else None)
        length_s = self._rng.expovariate(1 / self.plan.outage_s)

        def over() -> None:
            device.line.black_hole = False

        self._timeline.after(length_s, over)

    def _server_outage(self) -> None:
        length_s = self._rng.expovariate(1 / self.plan.outage_s)
        self._fleet.server.stay_down_until(self._timeline.now + length_s)
        self._fleet.server.crash_soon(power_cut=False)

    def _restart_broker(self) -> None:
        if not self._fleet.network.up:
            return
        wiped = self._rng.random() < self.plan.broker_wipes
        self._ledger.say("broker", "stops, wiped" if wiped else "stops")
        self._fleet.network.stop(wiped=wiped)
        down_s = self._rng.expovariate(1 / self.plan.down_s)
        self._timeline.after(down_s, self._fleet.network.start)

    def _disk_trouble(self, machine: Machine, kind: str, value: Any) -> None:
        if not machine.disk_is_fine:
            return
        setattr(machine.disk.faults, kind, value)
        self._ledger.say(machine.name, f"disk {kind}")

        def over() -> None:
            setattr(machine.disk.faults, kind, type(value)(0))
            machine.disk.faults.ended_s = self._timeline.now
            self._ledger.say(machine.name, "disk fine")

        self._timeline.after(self._rng.expovariate(1 / self.plan.disk_trouble_s), over)

    def _jump(self, machine: Machine) -> None:
        jump = self._rng.choice(["1970", "2040", "step", "right"])
        day = 86400.0
        machine.clock.skew_s = {
            "1970": -EPOCH + 1000.0,
            "2040": 2_208_988_800.0 - EPOCH,
            "step": self._rng.uniform(-day, day),
            "right": 0.0,
        }[jump]
        self._ledger.say(machine.name, f"clock jumps: {jump}")
        if machine.is_running:
            machine.wake()

"""The end of a simulated fleet's bad days: all is repaired, and then it must come to rest."""

import msgspec

from tools.simulation.connectivity import Connectivity
from tools.simulation.fleet import Fleet
from tools.simulation.happenings import Happenings
from tools.simulation.machines.virtual_disk import DiskFaults
from tools.simulation.machines.virtual_network import BrokerFaults
from tools.simulation.promises.ledger import Ledger
from tools.simulation.scenario.fleet_settings import Settings

__all__ = ["Repair"]

PATIENCE_S = 12 * 3600.0
LOOK_S = 600.0  # between two looks at whether all is at rest
RESTART_S = 30.0


class Repair:
    """Repairs ``fleet``, closes its training, and sees what does not come to rest."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        happenings: Happenings,
        connectivity: Connectivity,
        ledger: Ledger,
    ) -> None:
        self._settings = settings
        self._fleet = fleet
        self._happenings = happenings
        self._connectivity = connectivity
        self._ledger = ledger
        self._timeline = happenings.timeline

    def come_to_rest(self) -> float:
        """Repair everything, close training; return after how long all is at rest, or -1."""
        timeline, ledger = self._timeline, self._ledger
        if timeline.is_over:
            return -1.0
        began = timeline.now
        self._happenings.are_over = True
        ledger.say("world", "everything is repaired")
        self._repair_everything()
        self._close_training()
        patience_s = PATIENCE_S + self._settings.fold_seconds
        while timeline.now < began + patience_s:
            timeline.run(timeline.now + LOOK_S)
            if timeline.is_over:
                return -1.0
            if not self._restless():
                return timeline.now - began
        for reason in self._restless():
            ledger.broken("world", f"stuck: {reason}")
        return -1.0

    def _repair_everything(self) -> None:
        network = self._fleet.network
        network.faults = BrokerFaults()
        network.start()
        for machine in self._fleet.machines:
            faults = machine.disk.faults
            ended_s = faults.ended_s if faults.are_none else self._timeline.now
            machine.disk.faults = DiskFaults(ended_s=ended_s)
            machine.clock.skew_s = 0.0
            machine.line.black_hole = False
            self._connectivity.set_line(machine, up=True)
            machine.line.bits_per_s = 0.0
            machine.is_down_until = 0.0

    def _close_training(self) -> None:
        """The operator closes training with a new setting and a restart of the server."""
        server = self._fleet.server
        if self._settings.is_planning:
            server.stop_now()
        else:
            server.crash_soon(power_cut=False)
        closed = msgspec.structs.replace(server.config.task[0], releases=1)
        server.task = server.task._replace(config=closed)
        for machine in self._fleet.machines:
            self._timeline.after(RESTART_S, machine.boot)

    def _restless(self) -> list[str]:
        """Return what is not yet done."""
        reasons = []
        line, devices = self._fleet.release_line, self._fleet.devices
        if not self._fleet.server.is_running or line is None:
            return ["the server is down"]
        newest = line.current.manifest
        for device in devices:
            if not device.is_running or device.agent is None:
                reasons.append(f"{device.name} is down")
                continue
            parts = device.agent.parts
            if waiting := parts.outbox.waiting():
                left = [(entry.seq, entry.state.value) for entry in waiting]
                reasons.append(f"{device.name} has {left} waiting")
            if parts.slots.release != line.newest:
                reasons.append(f"{device.name} runs {parts.slots.release}, newest is {line.newest}")
            elif parts.slots.active != newest:
                reasons.append(f"{device.name} runs another release {line.newest} than the newest")
        if not self._settings.is_planning:
            reasons += self._ledger.server.operator.forgetting({device.name for device in devices})
        return reasons

"""The machines of a simulated fleet, and the broker between them: made by its settings."""

from pathlib import Path

from broker.assembly import MB, ServedTask
from broker.releases.release_line import ReleaseLine
from tools.simulation.learning.light_learning import Learning
from tools.simulation.machines.device_machine import DeviceMachine, DeviceSetup
from tools.simulation.machines.machine import Machine, Place
from tools.simulation.machines.memory_broker import RECEIVE_MAXIMUM
from tools.simulation.machines.server_machine import ServerMachine
from tools.simulation.machines.timeline import Timeline
from tools.simulation.machines.virtual_disk import VirtualDisk
from tools.simulation.machines.virtual_network import Line, VirtualBroker
from tools.simulation.promises.ledger import Ledger
from tools.simulation.scenario.fleet_configs import (
    device_config,
    device_pace,
    most_bytes,
    served,
    server_config,
)
from tools.simulation.scenario.fleet_settings import Settings

__all__ = ["FLEET", "Fleet"]

FLEET = "sim"
PAUSE_S = 5.0  # when planning: what a machine receives within it is handled together


class Fleet:
    """One server, its devices, and the broker between them, on disks below ``root``."""

    def __init__(
        self,
        settings: Settings,
        root: Path,
        learning: Learning,
        timeline: Timeline,
        ledger: Ledger,
    ) -> None:
        self._settings = settings
        self._root = root
        self._learning = learning
        self._timeline = timeline
        self._ledger = ledger
        self.network = VirtualBroker(
            timeline,
            is_patient=settings.is_planning,
            receive_maximum=1000 if settings.is_planning else RECEIVE_MAXIMUM,
        )
        self.server = self._make_server()
        self.devices = [self._make_device(number) for number in range(settings.devices)]
        ledger.server.watch(self.server)

    @property
    def machines(self) -> list[Machine]:
        return [self.server, *self.devices]

    @property
    def release_line(self) -> ReleaseLine | None:
        """The line of the one task's releases, while the server runs."""
        return self.server.release_line

    @property
    def most_server_bytes(self) -> int:
        """What the server may have on its disk."""
        settings = self._settings
        megabyte = MB if settings.is_planning else settings.server_mb
        return most_bytes(self.server.config, self._learning.bundle, megabyte)

    def _make_server(self) -> ServerMachine:
        section = served(self._settings)
        evaluate = self._learning.evaluate if self._settings.is_planning else None
        place = self._place("server", Line(delay_s=0.001))
        return ServerMachine(
            place,
            server_config(self._settings, FLEET, place.disk.at, section),
            ServedTask(section, self._learning.bundle, evaluate),
        )

    def _make_device(self, number: int) -> DeviceMachine:
        settings, learning, name = self._settings, self._learning, f"device-{number}"
        task, plan = learning.bundle.spec.task, settings.plan
        return DeviceMachine(
            self._place(name, Line(delay_s=plan.delay_s, bits_per_s=plan.bits_per_s)),
            DeviceSetup(
                number,
                learning,
                config=lambda at: device_config(settings, FLEET, name, task, at),
                pace=device_pace(settings),
                on_learned=self._ledger.devices.on_learned,
                trainer_kills=plan.trainer_kills,
                board=settings.board if settings.is_planning else None,
            ),
        )

    def _place(self, name: str, line: Line) -> Place:
        is_planning = self._settings.is_planning
        return Place(
            name,
            self._timeline,
            VirtualDisk(self._root / name, is_watched=not is_planning),
            line,
            self.network,
            self._ledger,
            mean_down_s=self._settings.plan.down_s,
            pause_s=PAUSE_S if is_planning else 0.0,
        )

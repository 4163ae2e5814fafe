"""Who is told of the turning points of a fleet that somebody else plays."""

from collections.abc import Sequence

from tools.local_fleet.fleet_processes import Device, Server

__all__ = ["Onlooker"]


class Onlooker:
    """Is called at the turning points, and may take its time; this one does nothing."""

    def devices_started(self, broker_pid: int, devices: Sequence[Device]) -> None:
        """The agents run (``broker_pid`` 0: somebody else's broker), the server does not yet."""

    def server_started(self, server: Server) -> None:
        """Now they learn."""

    def came_to_rest(self) -> None:
        """All devices run the last release, and have nothing to do."""

"""All passwords of a fleet at work change, in both orders: nothing is lost, nobody restarts."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.local_fleet.local_broker import LocalBroker, find_mosquitto
from tools.local_fleet.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fleet.conftest import SmallFleet

    MakeFleet = Callable[[LocalBroker], SmallFleet]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
WITHIN_S = 150.0  # a refused device tries again within a minute


class GuardedFleet:
    """A server and two devices, each with an account of its own on a real Mosquitto."""

    def __init__(self, directory: Path, make_fleet: "MakeFleet", stack: ExitStack) -> None:
        self._directory = directory
        self._accounts = directory / "accounts"
        self._accounts.touch()
        for account in ("aggregator", "device-1", "device-2"):
            self.tell_broker(account, "first-tulips")
        settings = ["allow_anonymous false", f"password_file {self._accounts}"]
        self.broker = LocalBroker("mosquitto", directory=directory / "mqtt", settings=settings)
        stack.enter_context(self.broker)
        self.fleet = make_fleet(self.broker)
        self.processes: list[Process] = [self.fleet.server, *self.fleet.devices]
        stack.callback(lambda: [process.kill() for process in self.processes])
        self._log_in(directory / "broker.toml", "aggregator")
        self.fleet.server.start()
        for device in self.fleet.devices:
            stack.enter_context(device)
            self._log_in(device.directory / "agent.toml", device.id)
            device.deliver()
            device.start()
        self.pids = [process.pid for process in self.processes]

    def _log_in(self, settings: Path, account: str) -> None:
        self.tell_process(account, "first-tulips")
        lines = f'[fleet]\nusername = "{account}"\npassword_file = "{self._file(account)}"\n'
        settings.write_text(settings.read_text().replace("[fleet]\n", lines))

    def _file(self, account: str) -> Path:
        return self._directory / f"{account}.password"

    def tell_process(self, account: str, password: str) -> None:
        self._file(account).write_text(f"{password}\n")
        self._file(account).chmod(0o600)

    def tell_broker(self, account: str, password: str) -> None:
        command = ["mosquitto_passwd", "-b", str(self._accounts), account, password]
        subprocess.run(command, check=True, capture_output=True)

    def tell_all(self, password: str) -> None:
        for process in self.processes:
            self.tell_process(process.name, password)

    def rotate_broker(self, password: str) -> None:
        for process in self.processes:
            self.tell_broker(process.name, password)
        assert self.broker.process is not None
        self.broker.process.send_signal(signal.SIGHUP)

    def hang_up(self, times: int = 1) -> None:
        for _ in range(times):
            for process in self.processes:
                process.signal(signal.SIGHUP)

    def learn_more(self) -> None:
        """Let samples arrive, and wait until both devices' work is in a release."""
        before = {device.id: device.folded for device in self.fleet.watch.look().devices}
        for device in self.fleet.devices:
            device.deliver()
        self.fleet.wait_until(
            lambda seen: all(device.folded > before[device.id] for device in seen.devices),
            within_s=WITHIN_S,
        )

    def wait_until_refused(self, times: int) -> None:
        """Wait until Mosquitto has refused each of them so often."""

        def are_refused(_: object) -> bool:
            logs = [process.log.read_text() for process in self.processes]
            return all(log.count("reason=the broker refuses") >= times for log in logs)

        self.fleet.wait_until(are_refused, within_s=WITHIN_S)

    def check(self) -> None:
        assert [process.pid for process in self.processes] == self.pids, "somebody was restarted"
        for process in self.processes:
            process.signal(signal.SIGTERM)
            process.wait()
        account = self.fleet.watch.account()
        assert (account.lost, account.folded_twice) == (0, 0)
        assert account.folded > 0
        for process in self.processes:
            assert "Traceback" not in process.log.read_text()
            for password in ("second-roses", "third-asters"):
                assert password not in process.log.read_text()


@pytest.fixture
def guarded(tmp_path: Path, make_fleet: "MakeFleet") -> Iterator[GuardedFleet]:
    with ExitStack() as stack:
        yield GuardedFleet(tmp_path, make_fleet, stack)


def test_passwords_change_in_both_orders_under_load_and_nothing_is_lost(
    guarded: GuardedFleet,
) -> None:
    guarded.learn_more()
    # The broker first; the devices are refused, and find the new password by themselves.
    guarded.rotate_broker("second-roses")  # which throws out who logged in with the first
    guarded.fleet.devices[0].deliver()
    guarded.wait_until_refused(times=1)
    guarded.tell_all("second-roses")
    guarded.learn_more()
    # Server and devices first; they are refused until the broker knows.
    guarded.tell_all("third-asters")
    guarded.hang_up()
    guarded.fleet.devices[1].deliver()
    guarded.wait_until_refused(times=2)
    guarded.rotate_broker("third-asters")
    guarded.learn_more()
    guarded.check()


def test_a_storm_of_signals_and_of_half_written_files_changes_nothing(
    guarded: GuardedFleet,
) -> None:
    guarded.learn_more()
    guarded.hang_up(times=100)
    for spoiled in ("", "\0"):
        guarded.tell_all(spoiled)
        guarded.hang_up(times=10)
    guarded.learn_more()
    for process in guarded.processes:
        assert "stays in force" in process.log.read_text()
    guarded.tell_all("first-tulips")
    guarded.hang_up()
    guarded.learn_more()
    log = guarded.fleet.devices[0].log.read_text()
    assert log.count("disconnected") == 0, log
    guarded.check()

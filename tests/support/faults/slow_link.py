"""A line of a given rate between two network namespaces: veth and the kernel's token bucket."""

import itertools
import os
import shutil
import subprocess
from functools import cache
from types import TracebackType

__all__ = ["SlowLink", "why_no_namespaces"]

_numbers = itertools.count()


@cache
def why_no_namespaces() -> str:
    """Return why shaped links between namespaces cannot be made here, or an empty string."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    try:
        with SlowLink(1_000_000):
            return ""
    except RuntimeError as error:
        return f"network namespaces or tbf are not available: {error}"


class SlowLink:
    """Two ends of one slow line: ``near`` (the server's) and ``far`` (the device's).

    Run a program at an end with the prefix `at`; the server's address is ``address``.
    ``bits_per_s`` holds for each direction.
    """

    def __init__(self, bits_per_s: float) -> None:
        name = f"{os.getpid() % 100_000}x{next(_numbers)}"
        self.near, self.far = f"efn{name}", f"eff{name}"
        self.address = "10.77.0.1"
        self._bits_per_s = bits_per_s

    def __enter__(self) -> "SlowLink":
        try:
            for space in (self.near, self.far):
                _run("ip", "netns", "add", space)
            pair = ("link", "add", "line", "type", "veth", "peer", "name", "line")
            _run("ip", "-n", self.near, *pair, "netns", self.far)
            for space, address in ((self.near, self.address), (self.far, "10.77.0.2")):
                _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "line")
                _run("ip", "-n", space, "link", "set", "line", "up")
                _run("ip", "-n", space, "link", "set", "lo", "up")
                # a queue as of a modem: a dozen packets
                rate = f"{int(self._bits_per_s)}bit"
                shape = ("tbf", "rate", rate, "burst", "2000", "limit", "20000")
                _run("tc", "-n", space, "qdisc", "add", "dev", "line", "root", *shape)
                for offload in ("tso", "gso", "gro"):  # packets as large as on a real line
                    if shutil.which("ethtool"):
                        _run(*self.at(space), "ethtool", "-K", "line", offload, "off")
        except RuntimeError:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._remove()

    @staticmethod
    def at(space: str) -> tuple[str, ...]:
        """Return what to put before a command so that it runs in ``space``."""
        return ("ip", "netns", "exec", space)

    def _remove(self) -> None:
        for space in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")

"""How the board is: temperature, throttling, memory, load. The only module that imports psutil."""

import os
from pathlib import Path

import psutil

from edge_agent.board.children import peak_rss_mb
from edge_agent.training.governor import Vitals

__all__ = ["read_vitals"]

_HWMON = Path("/sys/class/hwmon")
# rpi_volt reports under-voltage here, without vcgencmd and without root.
_UNDER_VOLTAGE = "in0_lcrit_alarm"


def read_vitals() -> Vitals:
    """Return how the board is now."""
    return Vitals(
        celsius=_celsius(),
        throttled=_is_under_voltage(),
        free_mb=psutil.virtual_memory().available / 1e6,
        load=os.getloadavg()[0] / (os.cpu_count() or 1),
        rss_mb=psutil.Process().memory_info().rss / 1e6,
        peak_rss_mb=peak_rss_mb(),
    )


def _celsius() -> float | None:
    """Return the temperature of the processor's hottest sensor; None if there is none."""
    try:
        sensors = psutil.sensors_temperatures()
    except (OSError, AttributeError):
        return None
    for name in ("cpu_thermal", "coretemp", "k10temp", "soc_thermal"):
        if readings := [entry.current for entry in sensors.get(name, [])]:
            return float(max(readings))
    return None


def _is_under_voltage() -> bool:
    for alarm in _HWMON.glob(f"*/{_UNDER_VOLTAGE}"):
        try:
            if alarm.read_text().strip() == "1":
                return True
        except OSError:
            continue
    return False

"""Vitals come from this machine, whatever sensors it has, and say what is true of this process."""

import subprocess
import sys

from edge_agent.training.vitals import read_vitals


def test_vitals_are_plausible() -> None:
    vitals = read_vitals()
    assert vitals.celsius is None or -40 < vitals.celsius < 130
    assert vitals.free_mb > 0
    assert vitals.load >= 0
    assert 5 < vitals.rss_mb <= vitals.peak_rss_mb * 1.05


def test_the_peak_is_our_own_and_not_that_of_who_started_us() -> None:
    """getrusage's maximum survives exec: a small agent started by a large program looked large."""
    large = "x = bytearray(200_000_000); import subprocess, sys; subprocess.run(sys.argv[1:])"
    small = "from edge_agent.board.children import peak_rss_mb; print(peak_rss_mb())"
    command = [sys.executable, "-c", large, sys.executable, "-c", small]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 60

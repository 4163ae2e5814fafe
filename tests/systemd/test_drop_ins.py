"""The drop-ins: what is copied beside the unit as it is, is understood there without a word."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
DROP_INS = sorted(SYSTEMD.glob("*.service.d/*.conf.example"))

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.name)
def test_systemd_understands_every_line_of_a_drop_in(drop_in: Path, tmp_path: Path) -> None:
    unit = drop_in.parent.name.removesuffix(".d")
    text = (SYSTEMD / unit).read_text().replace("/opt/edgefold/bin/edgefold-agent", sys.executable)
    (tmp_path / unit).write_text(text)
    folder = tmp_path / f"{unit}.d"
    folder.mkdir()
    shutil.copy(drop_in, folder / drop_in.name.removesuffix(".example"))
    for nonsense, expected in (("", ""), ("\nNonsense=1\n", "Nonsense")):
        (folder / "z.conf").write_text(f"[Service]{nonsense}")
        done = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / unit)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert expected in done.stderr
        assert bool(done.stderr) is bool(expected), "the drop-ins are read at all"

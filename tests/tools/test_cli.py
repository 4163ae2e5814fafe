"""The command line itself: help, exit codes, one line for each error."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import cli


def edgefold(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", *words], capture_output=True, text=True, check=False
    )


def test_help_loads_no_command_and_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "edgefold task create" in text
    assert all(name in text for name in cli.COMMANDS)


@pytest.mark.slow
def test_help_is_there_at_once() -> None:
    durations = []
    for _ in range(3):
        began = time.perf_counter()
        assert edgefold("--help").returncode == 0
        durations.append(time.perf_counter() - began)
    assert min(durations) < 0.6  # 0.15 s on a free machine


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, contextlib\nfrom tools import cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['task', 'create', '--help'])\n"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'torch', 'rich'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_help_of_every_command_is_there_without_any_extra() -> None:
    """On a device and beside a broker nothing is installed of what the extras bring."""
    program = (
        "import sys\nfrom models.host.extras import EXTRAS\nfrom tools import cli\n"
        "sys.modules |= dict.fromkeys(EXTRAS)\n"
        "for words in (*cli.COMMANDS, 'bench train', 'bench compress', 'bench codec', 'bench idle',"
        " 'bench server', 'task create', 'task train', 'task export', 'task show'):\n"
        "    try: print(words, cli.main([*words.split(), '--help']))\n"
        "    except SystemExit as ended: assert ended.code == 0, words\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (0, b"")


@pytest.mark.parametrize("words", [[], ["no-such-command"], ["task"], ["task", "train"]])
def test_a_wrong_command_line_is_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


def test_an_expected_error_is_one_line_without_colors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["task", "show", "nowhere"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("edgefold: nowhere is not a bundle")
    assert text.count("\n") == 1
    assert "\x1b" not in text


def test_a_file_that_cannot_be_written_is_one_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    out = tmp_path / "file" / "inside" / "bundle"
    words = ["task", "create", "a", "--net", "mlp", "--data", "digits", "--out", str(out)]
    assert cli.main(words) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_every_command_says_in_one_line_what_it_is() -> None:
    assert all(command.summary and "\n" not in command.summary for command in cli.COMMANDS.values())

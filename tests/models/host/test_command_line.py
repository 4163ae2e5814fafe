"""One table of exit codes and one sentence for each error, in all three programs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import broker.__main__
import edge_agent.__main__
import tools.cli
from models.errors import CommandLineError, EdgefoldError, NoPermissionError, UsageError
from models.host.command_line import ExitCode, run_command

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("main", [edge_agent.__main__.main, broker.__main__.main, tools.cli.main])
def test_the_docs_and_every_help_have_the_table_of_exit_codes(
    main: object, capsys: pytest.CaptureFixture[str]
) -> None:
    table = {str(int(code)): code.meaning for code in ExitCode}
    docs = (ROOT / "docs/troubleshooting.md").read_text().partition("## Exit codes")[2]
    assert dict(re.findall(r"^\| (\d+) \| (.*) \|$", docs, re.MULTILINE)) == table
    assert callable(main)
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out.partition("exit codes:\n")[2]
    assert dict(re.findall(r"^  (\d+) +(.*)$", said, re.MULTILINE)) == table


@pytest.mark.parametrize("unit", ["edge-agent", "edge-broker"])
def test_a_unit_is_started_anew_whatever_the_code(unit: str) -> None:
    lines = (ROOT / f"systemd/{unit}.service").read_text().splitlines()
    assert f"SuccessExitStatus={ExitCode.START_ANEW:d}" in lines
    assert "Restart=always" in lines
    assert not [line for line in lines if line.startswith("RestartPrevent")]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (EdgefoldError("too\n  bad"), ExitCode.FAILED, "too bad"),
        (UsageError("no such bundle"), ExitCode.FAILED, "no such bundle"),
        (CommandLineError("--older-than 3"), ExitCode.USAGE, "--older-than 3"),
        (NoPermissionError("not yours"), ExitCode.NO_PERMISSION, "not yours"),
        (PermissionError(13, "No", "/a\x1b"), ExitCode.NO_PERMISSION, r"/a\x1b: No"),
        (OSError(28, "No space left", "/a/b"), ExitCode.FAILED, "/a/b: No space left"),
        (MemoryError(), ExitCode.FAILED, "not enough memory"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    error: Exception, code: ExitCode, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    assert run_command("edgefold", command) == code
    assert capsys.readouterr().err == f"edgefold: {line}\n"


def test_a_missing_library_is_named_with_its_remedy_and_a_mistake_of_ours_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def without(library: str) -> int:
        raise ModuleNotFoundError(name=library)

    assert run_command("edgefold", lambda: without("torch.nn")) == ExitCode.FAILED
    assert "this needs torch; in the checkout of edgefold: " in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        run_command("edgefold", lambda: without("modles"))


def test_what_is_wrong_usage_is_for_the_program_to_say() -> None:
    def command() -> int:
        raise UsageError("not a bundle")

    assert run_command("edgefold", command, wrong_usage=UsageError) == ExitCode.USAGE


def test_ctrl_c_and_a_reader_who_has_gone_are_said_by_the_code_alone() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_command("edgefold", interrupted) == ExitCode.INTERRUPTED
    program = (
        "import sys; from models.host.command_line import run_command\n"
        "sys.exit(run_command('edgefold', lambda: print('x' * 100_000) or 0))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.PIPE_CLOSED, b"")


@pytest.mark.parametrize("program", ["edge_agent", "broker", "tools.cli"])
def test_help_for_a_reader_who_has_gone_is_said_by_the_code_alone(program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # else argparse keeps the error to itself
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.PIPE_CLOSED, b"")


def test_a_disk_too_full_for_the_output_is_said() -> None:
    program = (
        "import sys; from models.host.command_line import run_command\n"
        "sys.exit(run_command('edgefold', lambda: print('x') or 0))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, check=False
        )
    said = b"edgefold: No space left on device\n"
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, said)

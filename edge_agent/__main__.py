"""`edgefold-agent`: the agent of one device, and a look at what it has."""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_agent.config import DEFAULT_PATH, Config, read_config
from models.host.command_line import ExitCode, exit_codes, run_command
from models.host.sentences import state_of_service
from models.version import VERSION

__all__ = ["main"]

log = logging.getLogger("edge_agent")

EXAMPLES = """\
examples:
  edgefold-agent run --config agent.toml
  edgefold-agent run --config agent.toml --set samples.max_count=1000 --log-level debug
  edgefold-agent status --json
  edgefold-agent infer new-images.npz
  edgefold-agent train-once --config agent.toml
  edgefold-agent adopt            after another device.id or device.task in agent.toml

run: SIGHUP reads passwords and certificates again
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (`ExitCode`)."""
    return run_command("edgefold-agent", lambda: _command(_parser().parse_args(arguments)))


def _command(options: argparse.Namespace) -> int:
    config = read_config(options.config, options.set)
    with state_of_service(config.storage.directory):
        command: Callable[[argparse.Namespace, Config], int] = options.command
        return command(options, config)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_PATH,
        metavar="FILE",
        help="agent.toml (default: %(default)s)",
    )
    common.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="another value for one setting; may be repeated",
    )
    common.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    parser = argparse.ArgumentParser(
        prog="edgefold-agent",
        description="Learns on this device, and runs what the fleet has learned.",
        epilog=f"{EXAMPLES}\n{exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgefold-agent {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    add("run", _run, "run the agent until SIGTERM")
    status = add("status", _status, "show what this device has and does; changes nothing")
    status.add_argument("--json", action="store_true", help="for programs")
    infer = add("infer", _infer, "let the installed release answer for samples")
    infer.add_argument("file", type=Path, metavar="FILE.npz", help="with an array x")
    infer.add_argument("--json", action="store_true", help="for programs")
    once = add(
        "train-once", _train_once, "train once now and show what would be sent; changes nothing"
    )
    once.add_argument("--json", action="store_true", help="for programs")
    add(
        "adopt",
        _adopt,
        "give the stopped device the id and task that agent.toml has now; keeps its samples",
    )
    return parser


def _run(options: argparse.Namespace, config: Config) -> int:
    from edge_agent.agent import run
    from edge_agent.build import build
    from models.access.reload import Reload
    from models.host.service import Notifier, configure_logging, reload_on_hangup, stop_on_signals

    configure_logging(options.log_level)
    stop = stop_on_signals()
    asked = reload_on_hangup(stop)
    built = build(config, options.config)
    reload = Reload(
        config,
        built.link.credentials,
        asked,
        read=lambda: read_config(options.config, options.set),
        login=lambda settings: settings.fleet.login(options.config),
    )
    log.info(
        "agent starts version=%s device=%s task=%s fleet=%s",
        VERSION,
        config.device.id,
        config.device.task,
        config.fleet.name,
    )
    try:
        run(built.agent, built.link, stop, Notifier(), reload)
    except Exception:
        # A mistake of ours: all state is on disk, systemd starts us anew.
        log.exception("agent failed")
        return ExitCode.FAILED
    log.info("agent stopped")
    return ExitCode.START_ANEW if reload.wants_start else ExitCode.DONE


def _status(options: argparse.Namespace, config: Config) -> int:
    from edge_agent.commands.show_status import show_status

    return show_status(config, as_json=options.json)


def _infer(options: argparse.Namespace, config: Config) -> int:
    from edge_agent.commands.infer_file import infer_file

    return infer_file(config, options.file, as_json=options.json)


def _train_once(options: argparse.Namespace, config: Config) -> int:
    from edge_agent.commands.train_once import train_once

    return train_once(config, as_json=options.json)


def _adopt(options: argparse.Namespace, config: Config) -> int:
    from edge_agent.commands.adoption import adopt

    print(adopt(config.storage.directory, device=config.device.id, task=config.device.task))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

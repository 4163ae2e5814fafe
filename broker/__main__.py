"""``edgefold-broker run|check|status|personal|releases|forget``: beside an MQTT broker."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from models.errors import CommandLineError
from models.host.command_line import ExitCode, exit_codes, run_command
from models.host.sentences import state_of_service
from models.version import VERSION

__all__ = ["EXAMPLES", "main"]

if TYPE_CHECKING:
    from broker.config import Config

log = logging.getLogger("broker")

AHEAD = 64  # messages that the MQTT broker may send ahead: they share a commit, and its fdatasync
DEFAULT_CONFIG = Path("/etc/edgefold/broker.toml")
EXAMPLES = """\
examples:
  edgefold-broker run --config broker.toml            serve until SIGTERM
  edgefold-broker check --config broker.toml          what run would refuse, and what it costs
  edgefold-broker status --config broker.toml         the fleet, device by device
  edgefold-broker status --only problems --sort heard those that want to be looked at
  edgefold-broker status --json | jq .summary         the same for programs
  edgefold-broker personal --config broker.toml       how good the models of the devices are
  edgefold-broker releases --config broker.toml       every release and what it came from
  edgefold-broker releases --export 7 model.onnx      release 7 as an ordinary ONNX file
  edgefold-broker forget old-camera 'test-*'          devices that will not come back
  edgefold-broker forget --older-than 30d             likewise, all not heard for so long

broker.toml, all that is needed:
  [fleet]
  name = "orchard"
  broker = "mqtt://localhost"
  [storage]
  directory = "/var/lib/edge-broker"
  [[task]]
  bundle = "/srv/edgefold/leaves"     # made by `edgefold task create`
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code (`ExitCode`)."""
    # Before numpy is loaded: more threads take more of the processor for the same decoding, 2.5
    # times as much on two cores with other work, and are not faster.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return run_command("edgefold-broker", lambda: _command(_parser().parse_args(arguments)))


def _command(options: argparse.Namespace) -> int:
    from broker.config import load_config

    config = load_config(options.config)
    with state_of_service(config.path(config.storage.directory)):
        if options.command == "run":
            return _run(config, options.config)
        if options.command == "check":
            return _check(config, as_json=options.json)
        if options.command == "status":
            _status(config, as_json=options.json, only=options.only, sort=options.sort)
        elif options.command == "forget":
            _forget(config, options.devices, options.older_than, is_confirmed=options.yes)
        elif options.command == "personal":
            _personal(config, as_json=options.json)
        else:
            _releases(config, options.task, as_json=options.json, export=options.export)
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edgefold-broker",
        description="The aggregator of a fleet: folds what devices learned into releases.",
        epilog=f"{EXAMPLES}\n{exit_codes()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgefold-broker {VERSION}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="run|check|status|personal|releases|forget"
    )
    run = commands.add_parser("run", help="serve until SIGTERM")
    check = commands.add_parser("check", help="say what run would refuse, and what it costs")
    status = commands.add_parser("status", help="show the fleet, also beside a running server")
    personal = commands.add_parser("personal", help="how good the devices' models are to them")
    releases = commands.add_parser("releases", help="show or export releases")
    forget = commands.add_parser("forget", help="remove devices that will not come back")
    for command in (run, check, status, personal, releases, forget):
        command.add_argument(
            "--config",
            type=Path,
            default=DEFAULT_CONFIG,
            metavar="FILE",
            help=f"default: {DEFAULT_CONFIG}",
        )
    for command in (check, status, personal, releases):
        command.add_argument("--json", action="store_true", help="print JSON for programs")
    status.add_argument(
        "--only",
        action="append",
        default=[],
        choices=("problems", "silent", "old", "away", "online"),
        help="show these devices alone; may be given more than once, then all must hold",
    )
    status.add_argument(
        "--sort",
        default="device",
        choices=("device", "heard", "release", "samples", "trained", "problem", "version"),
        help="default: device, as people count",
    )
    forget.add_argument("devices", nargs="*", metavar="DEVICE", help="a name, or a pattern with *")
    forget.add_argument("--older-than", metavar="30d", help="only those not heard for so long")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    releases.add_argument("--task", metavar="NAME", help="which one, if there are several")
    releases.add_argument(
        "--export",
        nargs=2,
        metavar=("N", "FILE.onnx"),
        help="write release N with its weights as an ONNX file",
    )
    return parser


def _run(config: "Config", path: Path) -> int:
    from broker.assembly import assemble, lease, lock_directory, read_tasks
    from broker.config import load_config
    from broker.contradictions import doubts
    from broker.lease.leaseholder import Leaseholder
    from broker.lease.server_state import StateFile
    from broker.server import Server
    from broker.serving import run
    from models.access.broker_address import broker_address
    from models.access.credentials import CredentialSource
    from models.access.reload import Reload
    from models.host.ballast import with_ballast
    from models.host.service import Notifier, configure_logging, reload_on_hangup, stop_on_signals
    from models.transport.link import Link
    from models.transport.mqtt import MqttLink

    fleet = config.fleet
    configure_logging(config.log_level)
    for sentence in config.doubts:
        log.warning("%s", sentence)
    stop = stop_on_signals()
    asked = reload_on_hangup(stop)
    host, port, _ = broker_address(fleet.broker)
    lock = lock_directory(config.path(config.storage.directory))
    credentials = CredentialSource(config.login(path))
    reload = Reload(
        config,
        credentials,
        asked,
        read=lambda: load_config(path),
        login=lambda new: new.login(path),
    )

    def make_link(
        client_id: str, will: tuple[str, bytes] | None, *, is_passing: bool = False
    ) -> MqttLink:
        return MqttLink(
            host,
            port,
            client_id=client_id,
            will=will,
            login=credentials,
            protocol=fleet.protocol,
            ahead=AHEAD,
            is_passing=is_passing,
            waits=not is_passing,
        )

    notifier, alive_at = Notifier(), time.monotonic()
    holder: Leaseholder | None = None

    def on_progress() -> None:
        nonlocal alive_at
        if holder is not None:
            holder.stay_alive(time.monotonic())
        if time.monotonic() - alive_at > 5.0:
            alive_at = time.monotonic()
            notifier.alive("folding or evaluating")

    def make_server(link: Link) -> Server:
        return with_ballast(
            config.path(config.storage.directory),
            lambda: assemble(config, tasks, link, time.monotonic(), time.time(), on_progress),
        )

    try:
        tasks = read_tasks(config, on_progress)
        for task in tasks:
            for sentence in doubts(task.config, task.bundle.spec):
                log.warning("task %s: %s", task.bundle.spec.task, sentence)
        holder = lease(config, tasks, make_link, make_server)
        state_file = StateFile(config.path(config.storage.directory))
        run(holder, stop, notifier, state_file, reload)
    finally:
        os.close(lock)
    return ExitCode.START_ANEW if reload.wants_start else ExitCode.DONE


def _check(config: "Config", *, as_json: bool) -> int:
    from broker.commands.check_command import check, show_checked

    checked = check(config)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(checked), indent=1).decode())
    else:
        show_checked(checked)
    return ExitCode.DONE if checked.is_fine else ExitCode.FAILED


def _status(config: "Config", *, as_json: bool, only: Sequence[str], sort: str) -> None:
    from broker.reports.fleet_report import read_report
    from broker.reports.fleet_table import show_status, terminal_width

    report = read_report(config.path(config.storage.directory))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    else:
        show_status(report, time.time(), only=only, sort=sort, width=terminal_width())


def _personal(config: "Config", *, as_json: bool) -> None:
    from broker.reports.fleet_report import read_report
    from broker.reports.personal_report import personal_report, show_personal

    reports = personal_report(read_report(config.path(config.storage.directory)))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(reports), indent=1).decode())
    else:
        show_personal(reports)


def _forget(
    config: "Config", names: Sequence[str], older_than: str | None, *, is_confirmed: bool
) -> None:
    from broker.commands.forget_command import age_s, forget

    if not names and older_than is None:
        raise CommandLineError("name the devices to forget, or --older-than 30d")
    has_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    forget(
        config.path(config.storage.directory),
        names,
        older_than_s=age_s(older_than) if older_than is not None else None,
        is_confirmed=is_confirmed,
        ask=_ask if has_terminal else None,
        now=time.time(),
    )


def _ask(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _releases(
    config: "Config", name: str | None, *, as_json: bool, export: tuple[str, str] | None
) -> None:
    from broker.reports.fleet_report import read_report
    from broker.reports.fleet_table import show_releases

    number = _release_number(export[0]) if export else 0
    report = read_report(config.path(config.storage.directory))
    tasks = [report.task(name)] if name else list(report.tasks)
    if export is not None:
        if len(tasks) != 1:
            raise CommandLineError(f"name one --task of {', '.join(task.task for task in tasks)}")
        _export(config, tasks[0].task, number, export[1])
    elif as_json:
        print(msgspec.json.format(msgspec.json.encode(tasks), indent=1).decode())
    else:
        for task in tasks:
            show_releases(task, time.time())


def _release_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise CommandLineError(f"--export wants a release number and a file, not {text[:40]!r}")
    return int(text)


def _export(config: "Config", task: str, number: int, target: str) -> None:
    from broker.commands.release_export import export_release

    export_release(config.path(config.storage.directory), task, number, Path(target))
    print(f"release {number} of {task} is in {target}")


if __name__ == "__main__":
    sys.exit(main())

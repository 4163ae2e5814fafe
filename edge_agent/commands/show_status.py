"""`edgefold-agent status`: what a device has and does, from what lies in its directory."""

import json
import os
import time
from pathlib import Path
from typing import Any

from edge_agent.board.installation import is_held, read_installation
from edge_agent.board.problems import Problem
from edge_agent.build import control_path, daily_limits, status_path
from edge_agent.commands.installed_release import own_of
from edge_agent.config import Config
from edge_agent.inference.inference_client import ping
from edge_agent.releases.model_slots import Slots
from edge_agent.reports.status_file import LocalStatus, read_local_status
from edge_agent.samples.sample_store import segments
from edge_agent.spending.allowance import left
from edge_agent.spending.spending_book import as_noted
from edge_agent.training.local_steps import costs_of, scarcest
from edge_agent.updates.outbox_contents import read_only
from edge_agent.updates.outbox_facts import OutboxFacts
from models.errors import UsageError

__all__ = ["show_status"]

STARTING = "the agent starts, or has no room on its disk to say what it does"
STOPPED = "the agent does not run: start it, as with `sudo systemctl start edge-agent`"


def show_status(config: Config, *, as_json: bool) -> int:
    """Print what the device has and does.

    Raises:
        UsageError: no agent was ever started there.
        PermissionError: we may not look.
    """
    facts = _gathered(config)
    if as_json:
        print(json.dumps(facts, indent=1))
        return 0
    print(facts.pop("summary"))
    problems, since = facts.pop("problems"), facts.pop("connection_since")
    facts.pop("problem")
    if since is not None:
        facts["connected"] = f"{'yes' if facts['connected'] else 'no'}, since {since}"
    rows = {name.replace("_", " "): _readable(value) for name, value in facts.items()}
    width = max(map(len, rows))
    for name, text in rows.items():
        print(f"{name:{width}}  {text}")
    for problem in problems:
        since = f"{problem['part']}, since {problem['since']}"
        print(f"{'problem':{width}}  {problem['text']} ({since})")
    return 0


def _readable(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _gathered(config: Config) -> dict[str, Any]:
    directory = config.storage.directory
    known = read_installation(directory)
    if known is None:
        raise UsageError(
            f"no agent was ever started on {directory}: start one with `edgefold-agent run`, or "
            "name its configuration with --config"
        )
    running = is_held(directory)
    live = read_local_status(status_path(config)) if running else None
    slots = Slots(directory, is_owner=False)
    waiting, facts, _ = read_only(directory / "outbox.db")
    train = segments(directory / "samples")
    inference = ping(control_path(directory))
    return {
        **_of_agent(live, running=running),
        "broker": config.fleet.broker,
        "fleet": config.fleet.name,
        "device": known.device,
        "task": known.task,
        "starts": known.boot,
        "release": slots.release,
        **_of_models(config, slots, facts),
        "samples": sum(segment.samples for segment in train),
        "holdout": sum(s.samples for s in segments(directory / "holdout")),
        "local_steps": _steps(config, slots, facts),
        "budget_left": left(as_noted(daily_limits(config), facts)),
        "updates_made": facts.made,
        "updates_waiting": len(waiting),
        "updates_folded": facts.folded,
        "updates_refused": facts.refused,
        "updates_merged_back": facts.merged_back,
        "updates_replaced": facts.replaced,
        "bytes_waiting": sum(entry.size for entry in waiting),
        "bytes_up": live.status.bytes_up if live else 0,
        "bytes_down": live.status.bytes_down if live else 0,
        "rss_mb": live.status.rss_mb if live else None,
        "trainer_peak_rss_mb": facts.trainer_peak_rss_mb,
        "inference_release": inference.get("release"),
        "inference_serves": inference.get("serves"),
        "inference_socket": inference.get("socket"),
        "disk_mb": round(_disk_bytes(directory) / 1e6, 1),
    }


def _of_models(config: Config, slots: Slots, facts: OutboxFacts) -> dict[str, Any]:
    """Return which model runs, why, and how good the models are on the hold-out."""
    own, active = own_of(config), slots.active
    return {
        "serves": own.serves(active) if active else None,
        "serves_why": own.why(active) if active else "",
        "accuracy": facts.accuracy,
        "accuracy_first": facts.accuracy_first,
        "accuracy_shared": facts.accuracy_shared,
        "accuracy_after": facts.accuracy_after,
        "accuracy_alone": facts.accuracy_alone,
    }


def _steps(config: Config, slots: Slots, facts: OutboxFacts) -> str:
    """Return how many local steps the last training had, and where it chose them, why."""
    if not facts.steps:
        return ""
    if slots.active is None or slots.active.plan.steps is None:
        return str(facts.steps)
    scarce = scarcest(costs_of(facts, daily_limits(config)), facts.steps)
    verb = "is" if scarce == "" else "are"
    return f"{facts.steps}: {scarce or 'nothing'} {verb} {'what is ' if scarce else ''}scarce"


def _of_agent(live: LocalStatus | None, *, running: bool) -> dict[str, Any]:
    """Return what the agent says of itself; it says nothing while it is stopped or starts."""
    problems = live.problems if live else ()
    return {
        "summary": live.summary if live else STARTING if running else STOPPED,
        "running": running,
        "state": live.status.state if live else "starting" if running else "stopped",
        "problem": problems[0].text if problems else "",
        "problems": [_with_date(problem) for problem in problems],
        "connected": live.connected if live else None,
        "connection_since": _moment(live.since) if live else None,  # connected or not
        "last_error": live.last_error if live and live.error_at is not None else "",
        "last_error_at": _moment(live.error_at) if live else None,
        "server_heard": _moment(live.heard_at) if live else None,
        "waits_for": live.waits_for if live else "",
    }


def _with_date(problem: Problem) -> dict[str, str | None]:
    return {"part": problem.part, "text": problem.text, "since": _moment(problem.since)}


def _moment(monotonic_s: float | None) -> str | None:
    """Return a moment in local time, as the clock of this board sees it now."""
    if monotonic_s is None:
        return None
    at = time.time() - (time.monotonic() - monotonic_s)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _disk_bytes(directory: Path) -> int:
    """Return what lies below ``directory``; what a running agent takes away meanwhile is not there.

    Raises:
        OSError: a folder cannot be read, or we may not.
    """

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    total = 0
    for folder, names, files in os.walk(directory, onerror=failed):
        for name in (*names, *files):
            try:
                total += os.lstat(f"{folder}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return total

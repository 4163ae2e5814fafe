"""Which files are this device's own, which of its models runs, and what is noted of that."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.inference.inference_process import OwnValues
from edge_agent.personal.model_choice import Comparison, Serve, Serves, serve_of, serves_after, why
from edge_agent.personal.own_scores import Scores
from edge_agent.updates.outbox_contents import CodecState
from edge_agent.updates.outbox_facts import Noted, OutboxFacts
from models.protocol.manifest import Manifest

__all__ = ["OwnModels", "brief", "noted_of"]


class OwnModels:
    """What runs on a device, by what its outbox and its owner say.

    ``read`` gives the state of the outbox, ``folder`` is where the codec's files are, ``owner`` the
    setting ``[inference] serve``; None: as the task says.
    """

    def __init__(
        self,
        read: Callable[[], tuple[CodecState, OutboxFacts]],
        folder: Path | str,
        *,
        owner: Serve | None,
    ) -> None:
        self._read = read
        self._folder: Final = os.fspath(folder)
        self._owner: Final = owner

    def serve(self, manifest: Manifest) -> Serve:
        """Return what may run with ``manifest`` installed."""
        return serve_of(self._owner, manifest.plan.serve)

    def serves(self, manifest: Manifest) -> Serves:
        """Return what runs with ``manifest`` installed."""
        codec, facts = self._read()
        chose = self.serve(manifest) == "auto" and codec.tuned and facts.serves_tuned
        return "tuned" if chose else "released"

    def why(self, manifest: Manifest) -> str:
        """Return why, for people."""
        _, facts = self._read()
        return why(self.serve(manifest), self.serves(manifest), _compared(facts))

    def values(self, manifest: Manifest) -> OwnValues:
        """Return the files with which ``manifest`` runs here."""
        codec, _ = self._read()
        tuned = codec.tuned if self.serves(manifest) == "tuned" else None
        return OwnValues(self._path(codec.personal), self._path(tuned))

    def _path(self, name: str | None) -> Path | None:
        return Path(self._folder) / name if name else None


def noted_of(scores: Scores, before: OutboxFacts, *, may_choose: bool, has_trained: bool) -> Noted:
    """Return what is noted of a job's ``scores``, after the facts ``before`` it.

    ``may_choose``: whether the tuned model that was scored may run, and is kept.
    """
    facts: Noted = {}
    serves: Serves = "tuned" if before.serves_tuned else "released"
    serves = serves_after(scores.comparison, serves) if may_choose else "released"
    facts["serves_tuned"] = int(serves == "tuned")
    if scores.comparison is not None:
        facts["compared"] = scores.comparison.samples
        facts["compared_better"] = scores.comparison.better
        facts["compared_worse"] = scores.comparison.worse
        facts["compared_z"] = scores.comparison.z
    runs = scores.tuned if serves == "tuned" else scores.released
    if runs is not None:
        facts["accuracy"] = runs
    if scores.shared is not None:
        facts["accuracy_shared"] = brief(scores.shared)
    if scores.tuned is not None and has_trained:
        facts["accuracy_after"] = brief(scores.tuned)
    return facts


def brief(metric: float) -> float:
    """Return ``metric`` with the digits that travel; a squared error may be very small."""
    return float(f"{metric:.4g}")


def _compared(facts: OutboxFacts) -> Comparison | None:
    if facts.compared is None:
        return None
    return Comparison(facts.compared, facts.compared_better, facts.compared_worse, facts.compared_z)

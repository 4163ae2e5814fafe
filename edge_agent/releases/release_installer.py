"""From files to a release that runs: made here or fetched, tried before it is active.

Nothing is installed whose spec does not fit or that the inference process cannot run.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from edge_agent.board.problems import Problems, sentence_of
from edge_agent.releases.admission import unfit
from edge_agent.releases.model_slots import Slots
from edge_agent.releases.patching import Patching
from edge_agent.releases.release_life import ReleaseEvent, ReleaseState, TrackedRelease
from edge_agent.releases.release_pace import ReleasePace
from edge_agent.releases.vectors_to_make import ToMake, to_make
from models.errors import DigestMismatchError, TransientError, TrustError
from models.host.backoff import Backoff
from models.protocol.manifest import Artifact, Kind, Manifest

__all__ = ["Models", "ReleaseInstaller"]

_S, _E = ReleaseState, ReleaseEvent
log = logging.getLogger("edge_agent")

# What can refuse comes first.
ORDER: tuple[Kind, ...] = ("spec", "train", "infer", "parameters", "average")
STARTING_FAILURES = 4  # an inference process that starts is no problem
PATCH_TRIES = 3  # on a failing disk, with little memory, before all is fetched whole


class Models(Protocol):
    """Whoever answers with the model: the inference process, or nobody."""

    def load(self, manifest: Manifest) -> str:
        """Switch to a release whose files are here; return "" or why it cannot run.

        Raises:
            TransientError: not able to try now.
        """


class ReleaseInstaller:
    """Takes steps for the release that is followed; what can be tried again rests before."""

    def __init__(
        self,
        *,
        task: str,
        slots: Slots,
        models: Models,
        patching: Patching,
        problems: Problems,
        uniform: Callable[[float, float], float],
        pace: ReleasePace,
    ) -> None:
        self._task = task
        self._slots = slots
        self._models = models
        self._patching = patching
        self._problems = problems
        self._patching_s = pace.patching_s
        self.rest = Backoff(1.0, pace.disk_retry_s, uniform=uniform)
        self._wanted: Manifest | None = None
        self._no_patches = False  # they did not lead to the wanted release
        self._no_average = False  # what was made was not its average
        self._damaged: set[str] = set()  # patches that arrived damaged

    def follow(self, manifest: Manifest | None) -> None:
        """Install another release, or none."""
        self.stop()
        self.rest.worked()
        self._wanted = manifest
        self._no_patches = self._no_average = False
        self._damaged.clear()

    def stop(self) -> None:
        """End the child, if one runs."""
        self._patching.stop()

    def missing(self, release: TrackedRelease) -> tuple[Artifact, ...]:
        """Return what is to be fetched now, in `ORDER`, each once; nothing: `advance` can go on."""
        if release.state is _S.ANNOUNCED:  # it may be refused: no bytes for the rest yet
            files: Iterable[Artifact] = [release.manifest.artifacts["spec"]]
        else:
            files = self._files(release.manifest)
        missing = tuple(artifact for artifact in files if not self._slots.has(artifact))
        if missing and release.state in (_S.PATCHING, _S.WHOLE):
            release.happened(_E.LOST)
        return missing

    def arrived_damaged(self, artifact: Artifact) -> None:
        """Fetch the parameters whole if it is a patch, and not the first time."""
        if self._wanted is None or artifact not in self._to_make(self._wanted).patches:
            return
        if artifact.sha256 in self._damaged:
            self._give_up_patches(self._wanted, "a patch arrived damaged twice")
        self._damaged.add(artifact.sha256)

    def advance(self, release: TrackedRelease, now: float) -> float:
        """Do what comes next with the files that are here; return when to go on.

        Raises:
            TrustError, PayloadError: the release is not for this device.
        """
        try:
            match release.state:
                case _S.ANNOUNCED:
                    self._judge(release.manifest)
                    release.happened(_E.FITS)
                case _S.FETCHING:
                    is_to_make = bool(self._to_make(release.manifest))
                    release.happened(_E.PATCHES_HERE if is_to_make else _E.FILES_HERE)
                case _S.PATCHING:
                    if not self._patch(release, now):
                        return now + self._patching_s
                case _:
                    self._try(release)
        except (TransientError, OSError) as error:
            self.rest.failed(now)
            if release.state is _S.STAGED:
                release.happened(_E.POSTPONED)
            if self.rest.failures > STARTING_FAILURES:
                self._problems.say(
                    "install", f"release {release.manifest.release} waits: {sentence_of(error)}"
                )
        return now

    def _judge(self, wanted: Manifest) -> None:
        """Look at the spec, which is here."""
        active = self._slots.active
        installed = self._slots.spec(active) if active else None
        if reason := unfit(self._slots.spec(wanted), task=self._task, installed=installed):
            raise TrustError(f"release {wanted.release}: {reason}")

    def _patch(self, release: TrackedRelease, now: float) -> bool:
        """Make what is to be made out of the installed release; return whether that is over."""
        wanted = release.manifest
        make = self._to_make(wanted)
        try:
            not_averaged = self._patching.advance(wanted, make, now)
            if not_averaged is None:
                return False
        except (TrustError, DigestMismatchError) as error:
            self._give_up(wanted, make, sentence_of(error))
        except (TransientError, OSError) as error:
            self.rest.failed(now)
            if self.rest.failures < PATCH_TRIES:
                return True
            self._give_up(wanted, make, sentence_of(error))
        else:
            if not_averaged:
                self._give_up_average(wanted, not_averaged)
            else:
                self._problems.clear("download")
            log.info("release patched number=%d from=%d", wanted.release, self._slots.release)
        self.rest.worked()
        is_whole = not any(True for _ in self._lacking(wanted))
        release.happened(_E.PATCHED if is_whole else _E.UNPATCHED)
        return True

    def _try(self, release: TrackedRelease) -> None:
        """Make ``release`` the active one if it runs."""
        manifest = release.manifest
        self._slots.stage(release)
        if reason := self._models.load(manifest):
            raise TrustError(f"release {manifest.release} does not run here: {reason}")
        self._slots.activate(manifest)

    def _give_up(self, wanted: Manifest, make: ToMake, reason: str) -> None:
        """Fetch instead what ``make`` said."""
        if make.patches:
            self._give_up_patches(wanted, reason)
        else:
            self._give_up_average(wanted, reason)

    def _give_up_patches(self, wanted: Manifest, reason: str) -> None:
        """Fetch the parameters of ``wanted``, which do not depend on patches."""
        self._no_patches = True
        self._problems.say(
            "download",
            f"release {wanted.release} could not be made from patches ({reason}); "
            "its parameters are fetched whole",
        )

    def _give_up_average(self, wanted: Manifest, reason: str) -> None:
        """Fetch the average of ``wanted``, which depends on no other then."""
        self._no_average = True
        self._problems.say(
            "download",
            f"the average of release {wanted.release} could not be made here ({reason}); "
            "it is fetched whole",
        )

    def _files(self, wanted: Manifest) -> Iterable[Artifact]:
        """Return what ``wanted`` is made of: in the place of what is made here, of what."""
        files = dict.fromkeys(wanted.artifacts[kind] for kind in ORDER if kind in wanted.artifacts)
        make = self._to_make(wanted)
        if make.patches:
            del files[wanted.artifacts["parameters"]]
            files |= dict.fromkeys(make.patches)
        if make.average:
            del files[wanted.artifacts["average"]]
        return files

    def _lacking(self, wanted: Manifest) -> Iterable[Artifact]:
        """Return the files of ``wanted`` that are not here."""
        return (one for one in wanted.artifacts.values() if not self._slots.has(one))

    def _to_make(self, wanted: Manifest) -> ToMake:
        return to_make(
            wanted,
            self._slots.active,
            has=self._slots.has,
            no_patches=self._no_patches,
            no_average=self._no_average,
        )

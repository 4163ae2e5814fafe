"""What lies in a device's directory for the commands beside its agent: release, codec, values."""

from pathlib import Path

from edge_agent.config import Config
from edge_agent.personal.own_models import OwnModels
from edge_agent.releases.model_slots import Slots
from edge_agent.updates.outbox_contents import CodecState, read_only
from models.errors import UsageError
from models.protocol.manifest import Manifest

__all__ = ["codec_of", "installed", "own_of"]


def installed(slots: Slots, directory: Path) -> Manifest:
    """Return the release that is installed below ``directory``.

    Raises:
        UsageError: there is none.
    """
    if slots.active is None:
        raise UsageError(
            f"no release is installed below {directory} yet: start the agent, and the server must "
            "have published one"
        )
    return slots.active


def codec_of(directory: Path) -> CodecState:
    """Return the state of the codec, as last committed."""
    return read_only(directory / "outbox.db").codec


def own_of(config: Config) -> OwnModels:
    """Return what is this device's own, as last committed."""
    directory = config.storage.directory
    _, facts, codec = read_only(directory / "outbox.db")
    owner = config.inference.serve
    return OwnModels(lambda: (codec, facts), directory / "codec", owner=owner)

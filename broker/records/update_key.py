"""The name of an update: whose it is, and which. Refuses spellings that are not the shortest."""

from typing import NamedTuple

from models.errors import PayloadError
from models.protocol.names import UPDATE_ID

__all__ = ["UpdateKey"]

MAX_SEQUENCE = 1 << 53


class UpdateKey(NamedTuple):
    """The name of an update."""

    device: str
    installation: int
    sequence: int

    @property
    def update_id(self) -> str:
        return f"{self.installation:08x}-{self.sequence}"

    @classmethod
    def parse(cls, device: str, update_id: str) -> "UpdateKey":
        """Read the id out of a topic or request.

        Raises:
            PayloadError: not one, or not in its shortest form (7 is not 07: they would be two).
        """
        if not UPDATE_ID.fullmatch(update_id):
            raise PayloadError(f"update id {update_id[:40]!r}")
        installation, _, sequence = update_id.partition("-")
        key = cls(device, int(installation, 16), int(sequence))
        if key.update_id != update_id or not 1 <= key.sequence <= MAX_SEQUENCE:
            raise PayloadError(f"update id {update_id}: the number is not in its shortest form")
        return key

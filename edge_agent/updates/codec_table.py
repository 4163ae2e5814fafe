"""What the next training starts from: the state of the codec, and payloads that came back.

The vectors themselves lie in files; the outbox holds their names. Files that it does not name are
garbage.
"""

from collections.abc import Sequence

from edge_agent.updates.outbox_contents import CODEC, CodecState, Trained
from edge_agent.updates.outbox_file import OutboxFile, Question, Rows
from models.protocol.update import context_in

__all__ = ["CodecTable"]


def _numbers(rows: Rows) -> list[int]:
    return [number for (number,) in rows]


_REFUNDS = Question("refunds", "SELECT seq FROM refunds ORDER BY seq", _numbers)


class CodecTable:
    """The tables of the codec and of the refunds."""

    def __init__(self, file: OutboxFile) -> None:
        self._file = file

    def read(self) -> CodecState:
        codec = self._file.answer(CODEC)
        assert codec is not None  # the schema puts it there
        return codec

    def refunds(self) -> Sequence[int]:
        """Return the numbers of the payloads that wait to be added to the residual."""
        return self._file.answer(_REFUNDS)

    def refund(self, seq: int) -> bytes:
        ((payload,),) = self._file.rows("SELECT payload FROM refunds WHERE seq = ?", seq)
        return bytes(payload)

    def contexts(self) -> set[int]:
        """Return the digests of the contexts without which payloads in here cannot be decoded."""
        rows = self._file.rows(
            "SELECT substr(data, header_size + 1, 5) FROM updates "
            "UNION SELECT substr(payload, 1, 5) FROM refunds"
        )
        found = {context_in(bytes(head)) for (head,) in rows}
        return {digest for digest in found if digest is not None}

    def next_files(self) -> set[str]:
        """Return the files that waiting updates name: what is carried once they are folded."""
        rows = self._file.rows("SELECT next_history, next_owed FROM updates")
        return {name for row in rows for name in row if name is not None}

    # -- parts of a transaction

    def trained(self, trained: Trained, *, is_said: bool) -> None:
        """Take in what ``trained`` leaves; what it owes only if an update of it ``is_said``.

        The history stays, since only the server's answer moves it; another method has none.
        """
        self._file.rows(
            "UPDATE codec SET job = ?, personal = ?, tuned = ?",
            trained.job,
            trained.personal,
            trained.tuned,
        )
        if is_said:
            self._file.rows(
                "UPDATE codec SET residual = ?, feedback = ?, history = ?",
                trained.residual,
                trained.feedback,
                self.read().history_for(trained.feedback),
            )

    def folded(self, seq: int) -> None:
        """Carry from now on what update ``seq``, made against the history, has left."""
        self._file.rows(
            "UPDATE codec SET history = next_history, residual = next_owed FROM updates "
            "WHERE seq = ?",
            seq,
        )

    def forget_history(self) -> None:
        """The server does not remember this device: neither do we."""
        self._file.rows("UPDATE codec SET history = NULL")

    def forget(self, *, job: int) -> None:
        """Nothing stays; what was made up to ``job`` was made from what is no longer so."""
        self._file.rows(
            "UPDATE codec SET job = ?, residual = NULL, personal = NULL, history = NULL, "
            "tuned = NULL, feedback = NULL",
            job,
        )

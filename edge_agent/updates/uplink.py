"""From the outbox to the server: sends updates chunk by chunk, and believes only receipts.

The broker's acknowledgment means that a chunk has left our hands, nothing more. After it the
server is asked, ever more rarely, until it says that it holds the update; what it does not know is
sent again, what it has in part is completed.
"""

import logging
import math
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from edge_agent.board.problems import Problems
from edge_agent.updates.chunk_size import ChunkSize
from edge_agent.updates.outbox import Outbox
from edge_agent.updates.outbox_contents import Entry
from edge_agent.updates.receipt_waits import ANSWER_S, FIRST_WAIT_S, ReceiptWaits
from models.host.backoff import Backoff
from models.protocol.chunked_transfer import Layout
from models.protocol.doing import Doing
from models.protocol.messages import Receipts, Request
from models.protocol.topics import Topics
from models.protocol.update_life import OutboxState, ReceiptState
from models.transport.link import BrokerLimits, Link
from models.transport.refusals import TOO_LARGE, remedy

__all__ = ["Uplink"]

log = logging.getLogger("edge_agent")

TAKEN_S = 900.0  # for the broker's acknowledgment of a chunk: the link repeats it by itself
REFUSED_S = 60.0  # nothing is sent to a broker that refused a chunk
MOST_IDS = 64  # in one request
NO_LIMITS = BrokerLimits()


class _Sending(NamedTuple):
    """The one update that is on its way to the broker now."""

    entry: Entry
    layout: Layout
    left: list[int]  # chunks to publish, last first
    flying: set[int]  # chunks that the broker has not acknowledged
    wait_s: float  # for a receipt, once the last chunk has left


class Uplink:
    """Sends one update at a time, oldest first; its owner passes on events and the time."""

    def __init__(
        self,
        *,
        link: Link,
        topics: Topics,
        device: str,
        outbox: Outbox,
        problems: Problems,
        rng: random.Random,
        ask: Callable[[Request], None],
    ) -> None:
        self._link = link
        self._topics = topics
        self._device = device
        self._largest = NO_LIMITS.max_chunk  # bytes that the broker takes
        self._chunk: ChunkSize | None = None  # as the first update is cut, until it is known better
        self._now = 0.0
        self._outbox = outbox
        self._problems = problems
        self._ask = ask
        self._connected = False
        self._sending: _Sending | None = None
        self._tokens: dict[int, tuple[int, int, float]] = {}  # token -> seq, chunk, published at
        self._anew: dict[int, list[int] | None] = {}  # seq -> chunks to send, None for all
        self._waits = ReceiptWaits(rng.uniform)
        self._hold = Backoff(REFUSED_S, REFUSED_S, uniform=rng.uniform)

    @property
    def state(self) -> str:
        return Doing.SENDING if self._sending else ""

    @property
    def chunks_under_way(self) -> int:
        """How many chunks the broker has not acknowledged yet."""
        return len(self._tokens)

    # -- events

    def on_connected(self, now: float, limits: BrokerLimits = NO_LIMITS) -> None:
        """Ask what became of everything that has left us before."""
        self._connected = True
        self._largest = limits.max_chunk
        if self._chunk is not None:
            self._chunk.limit(self._largest)
        if self._sending and self._sending.layout.chunk_size > self._largest:
            self._cut_anew(self._sending.entry.seq)
        self._link.subscribe([self._topics.receipt(self._device)])
        sending = self._sending.entry.seq if self._sending else 0
        left = [e.seq for e in self._outbox.waiting() if e.has_left and e.seq != sending]
        self._waits.clear()
        for seq in left:
            self._waits.asked(seq, now)
        self._ask_for(left)

    def on_disconnected(self) -> None:
        self._connected = False
        oldest = min((published for *_, published in self._tokens.values()), default=self._now)
        if self._chunk is not None:
            self._chunk.broke(published=oldest, now=self._now)

    def on_published(self, token: int, refused: str, now: float) -> None:
        """A chunk has left our hands; after the last one the receipt is waited for."""
        if token not in self._tokens:
            return
        seq, index, published = self._tokens.pop(token)
        sending = self._sending
        if sending is None or sending.entry.seq != seq:
            return
        sending.flying.discard(index)
        if not refused and self._chunk is not None:
            self._chunk.acknowledged(sending.layout.length(index), published=published, now=now)
        if refused == TOO_LARGE and self._chunk is not None and sending.layout.chunk_size > 1024:
            self._chunk.was_too_large(sending.layout.length(index))
            log.warning("the broker refused a chunk as too large; smaller ones from now on")
            self._cut_anew(seq)
            return
        if refused:
            sending.left.append(index)
            self._hold.failed(now)
            self._problems.say(
                "sending",
                f"the broker refuses to let this device write device/{self._device}/update/#: "
                f"{remedy(refused, self._device)} ({refused})",
            )
            return
        if not sending.left and not sending.flying:
            self._sending = None
            self._outbox.was_sent(seq)
            self._waits.sent(seq, now, sending.wait_s)
            self._problems.clear("sending")
            log.info("update sent id=%s bytes=%d", self._id(seq), sending.entry.size)

    def on_server_back(self, now: float) -> None:
        """Ask soon for what it may not have got: a broker keeps nothing for who is not known.

        Both come back when a broker does, mostly the devices first, and a broker that forgot its
        sessions acknowledges chunks that nobody has subscribed to yet.
        """
        if self._sending:
            self._sending = self._sending._replace(wait_s=ANSWER_S)
        self._waits.hurry(now)

    def on_receipts(self, receipts: Receipts, now: float) -> None:
        """Carry out receipts; those of other installations are not ours."""
        for receipt in receipts.receipts:
            installation, _, number = receipt.update.partition("-")
            if installation != self._outbox.installation:
                continue
            seq = int(number)
            match self._outbox.settle(seq, receipt):
                case ReceiptState.FOLDED:
                    self._forget(seq)
                    log.info("update folded id=%s release=%d", receipt.update, receipt.release)
                case ReceiptState.REFUSED:
                    self._forget(seq)
                    log.warning("update refused id=%s: %s", receipt.update, receipt.reason)
                case ReceiptState.STORED:
                    self._forget(seq)
                    self._waits.stored(seq, now)
                    log.info("update stored id=%s", receipt.update)
                case ReceiptState.PARTIAL:
                    self._send_again(seq, list(receipt.missing) or None)
                case ReceiptState.UNKNOWN:
                    self._send_again(seq, None)

    # -- time passes

    def tick(self, now: float) -> float:
        """Hand over what the link takes now; return when to look again."""
        self._now = now
        if not self._connected:
            return math.inf  # until an event comes
        self._ask_for(self._waits.due(now))
        self._republish_lost(now)
        while self._hold.due(now) and self._link.window() > 0:
            if self._sending is None:
                self._sending = self._next(now)
            sending = self._sending
            if sending is None or not sending.left:
                break
            self._publish(sending, now)
        moments = [published + TAKEN_S for *_, published in self._tokens.values()]
        if not self._hold.due(now):
            moments.append(self._hold.at)
        return min([self._waits.next_at(), *moments])

    def _publish(self, sending: _Sending, now: float) -> None:
        entry = sending.entry
        index = sending.left[-1]
        data = self._outbox.read(
            entry.seq, index * sending.layout.chunk_size, sending.layout.length(index)
        )
        topic = self._topics.update(self._device, self._id(entry.seq), index)
        token = self._link.publish(topic, data)
        sending.left.pop()
        sending.flying.add(index)
        self._tokens[token] = (entry.seq, index, now)

    def _next(self, now: float) -> _Sending | None:
        """Choose the oldest update that shall be sent, and note that it may leave us now."""
        for entry in self._outbox.waiting():
            seq = entry.seq
            if seq in self._anew:
                chunks = self._anew[seq]
            elif not entry.has_left:
                if not self._outbox.may_leave(entry):
                    continue
                chunks = None
            elif entry.state is OutboxState.SENDING and seq not in self._waits:
                chunks = None
            elif seq not in self._waits:  # nobody asks: a failing disk interrupted us
                self._waits.sent(seq, now)
                continue
            else:
                continue
            if self._chunk is None:
                self._chunk = ChunkSize(entry.chunk_size)
                self._chunk.limit(self._largest)
            most = min(2 * self._chunk.bytes, self._largest)
            if chunks is None or entry.chunk_size > most:
                entry = entry._replace(chunk_size=self._chunk.bytes)  # all of it, as it fits now
                chunks = None
            layout = Layout(entry.size, entry.chunk_size)
            if chunks is None:
                chunks = list(range(layout.count))
            chunks = sorted({i for i in chunks if 0 <= i < layout.count}, reverse=True)
            self._outbox.begin(seq, entry.chunk_size)
            self._anew.pop(seq, None)  # not before: a disk that fails here must not forget it
            if not chunks:  # numbers that make no sense: all of it, the next time
                continue
            self._waits.forget(seq)
            is_repair = len(chunks) < layout.count  # the server names 256 missing ones at a time
            return _Sending(entry, layout, chunks, set(), ANSWER_S if is_repair else FIRST_WAIT_S)
        return None

    def _ask_for(self, numbers: Iterable[int]) -> None:
        ids = [self._id(seq) for seq in numbers]
        for start in range(0, len(ids), MOST_IDS):
            self._ask(Request(receipts=tuple(ids[start : start + MOST_IDS])))

    def _republish_lost(self, now: float) -> None:
        """Chunks whose acknowledgment never came: the link lost them in a broken session."""
        for token, (seq, index, published) in list(self._tokens.items()):
            if now < published + TAKEN_S:
                continue
            del self._tokens[token]
            if self._sending and self._sending.entry.seq == seq:
                self._sending.flying.discard(index)
                self._sending.left.append(index)

    def _cut_anew(self, seq: int) -> None:
        """Send all of the update that is under way again, in chunks of the size that fits now."""
        self._sending = None
        self._anew[seq] = None
        self._tokens = {t: about for t, about in self._tokens.items() if about[0] != seq}

    def _send_again(self, seq: int, chunks: list[int] | None) -> None:
        if self._sending and self._sending.entry.seq == seq:
            return  # it is on its way: the answer was given before it arrived
        self._waits.forget(seq)
        self._anew[seq] = chunks

    def _forget(self, seq: int) -> None:
        self._waits.forget(seq)
        self._anew.pop(seq, None)
        if self._sending and self._sending.entry.seq == seq:
            self._sending = None

    def _id(self, seq: int) -> str:
        return f"{self._outbox.installation}-{seq}"

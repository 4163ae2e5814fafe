"""Chunks of a release: any order, any restart, damaged ones, a disk that takes none."""

import errno
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from tiny_fleet import DEVICE, Clock, Files

from edge_agent.board.problems import Problems
from edge_agent.releases.chunk_fetcher import ChunkFetcher
from edge_agent.releases.chunks_on_disk import ChunksOnDisk
from edge_agent.releases.release_pace import ReleasePace
from models.errors import DigestMismatchError, PayloadError
from models.protocol.manifest import REQUIRED, Artifact, Kind
from models.protocol.messages import Request
from models.protocol.topics import BlobChunk, Topics
from models.transport.link import Connected, Received
from tools.simulation.machines.memory_broker import MemoryBroker
from tools.simulation.machines.memory_link import MemoryLink


class Bench:
    """A fetcher over a broker in memory; ``taken`` is what it handed over."""

    def __init__(
        self, directory: Path, broker: MemoryBroker, topics: Topics, clock: Clock, **pace: float
    ) -> None:
        self.broker, self.topics, self.clock = broker, topics, clock
        self.taken: dict[str, bytes] = {}
        self.damaged: list[Artifact] = []
        self.requests: list[Request] = []
        self.problems = Problems()
        self.link = MemoryLink(broker, client_id=DEVICE)
        self.store: Callable[[Artifact, Iterable[bytes]], None] = self._store
        self.fetcher = ChunkFetcher(
            link=self.link,
            topics=topics,
            chunks=ChunksOnDisk(directory),
            store=lambda artifact, pieces: self.store(artifact, pieces),
            on_damaged=self.damaged.append,
            problems=self.problems,
            uniform=random.Random(1).uniform,
            ask=self.requests.append,
            pace=ReleasePace(**pace),
        )
        self.link.start()

    def _store(self, artifact: Artifact, pieces: Iterable[bytes]) -> None:
        self.taken[artifact.sha256] = b"".join(pieces)

    def listen(self) -> None:
        for event in self.link.poll(0):
            if isinstance(event, Connected):
                self.fetcher.on_connected(self.clock.now)
            if isinstance(event, Received):
                chunk = self.topics.parse(event.topic)
                assert isinstance(chunk, BlobChunk)
                self.link.acknowledge(event)
                with self.problems.contained("message"):
                    self.fetcher.on_chunk(chunk, event.payload, self.clock.now)

    def fetch(self, files: Files, seconds: int = 60, kinds: Sequence[Kind] = REQUIRED) -> None:
        """Fetch what is missing of ``files`` for a while."""
        wanted = [files.manifest.artifacts[kind] for kind in kinds]
        for _ in range(seconds):
            self.listen()
            missing = [artifact for artifact in wanted if artifact.sha256 not in self.taken]
            if missing and self.clock.now >= self.fetcher.rests_until:
                self.fetcher.fetch(missing, self.clock.now)
            self.clock.now += 1.0

    @property
    def asked_topics(self) -> set[str]:
        return set(self.broker.sessions[DEVICE].exact)


@pytest.fixture
def bench(tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock) -> Bench:
    return Bench(tmp_path / "downloads", broker, topics, clock)


def retain(broker: MemoryBroker, topics: Topics, files: Files) -> None:
    for topic, data in files.chunks(topics).items():
        broker.accept(topic, data, retain=True)


def test_every_file_is_handed_over_whole_and_every_topic_given_up(
    bench: Bench, broker: MemoryBroker, topics: Topics, tmp_path: Path
) -> None:
    files = Files(1)
    files.replace("train", random.Random(1).randbytes(20_000))
    retain(broker, topics, files)
    bench.fetcher.follow(files.manifest, bench.clock.now)
    bench.fetch(files)
    assert set(bench.taken.values()) == set(files.files.values())
    assert bench.asked_topics == set()
    assert list((tmp_path / "downloads").iterdir()) == []


def test_what_is_on_disk_counts_unless_it_is_cut_otherwise(
    bench: Bench, broker: MemoryBroker, topics: Topics, clock: Clock, tmp_path: Path
) -> None:
    files = Files(1)
    files.replace("train", random.Random(1).randbytes(8_000))
    retain(broker, topics, files)
    bench.fetcher.follow(files.manifest, clock.now)
    train = files.manifest.artifacts["train"]
    bench.listen()
    bench.fetcher.fetch([train], clock.now)
    bench.listen()
    again = Bench(tmp_path / "downloads", broker, topics, clock)
    again.fetcher.follow(files.manifest, clock.now)
    again.fetcher.fetch([train], clock.now)  # not connected, nothing to wait for
    assert again.taken == {train.sha256: files.files["train"]}
    folder = tmp_path / "downloads" / train.sha256
    folder.mkdir()
    (folder / "0").write_bytes(files.files["train"][:1024])
    again.fetcher.follow(Files(1, chunk_size=2048).manifest, clock.now)
    again.fetcher.fetch([train], clock.now)
    assert list(folder.iterdir()) == []


def test_a_damaged_file_is_said_asked_for_and_fetched_ever_more_rarely(
    bench: Bench, broker: MemoryBroker, topics: Topics
) -> None:
    def refuse(artifact: Artifact, pieces: Iterable[bytes]) -> None:
        raise DigestMismatchError(expected=artifact.sha256, found="0" * 64)

    bench.store = refuse
    files = Files(1)
    retain(broker, topics, files)
    bench.fetcher.follow(files.manifest, bench.clock.now)
    bench.fetch(files, 300, ["spec"])
    spec = files.manifest.artifacts["spec"]
    assert 5 <= len(bench.damaged) <= 12
    assert set(bench.damaged) == {spec}
    assert len(bench.requests) >= len(bench.damaged)
    assert all(request.blobs == {spec.sha256: (0,)} for request in bench.requests)
    assert "arrived damaged" in bench.problems.most_urgent
    bench.store = bench._store
    bench.fetch(files, 900)
    assert bench.problems.most_urgent == ""
    assert set(bench.taken.values()) == set(files.files.values())


def test_another_release_keeps_the_topics_that_it_needs_too(
    bench: Bench, topics: Topics, clock: Clock
) -> None:
    one, two = Files(1), Files(2)  # they differ in their parameters
    bench.listen()
    bench.fetcher.follow(one.manifest, clock.now)
    bench.fetcher.fetch(tuple(one.manifest.artifacts.values()), clock.now)
    before = bench.asked_topics
    bench.fetcher.follow(two.manifest, clock.now)
    gone = before - bench.asked_topics
    assert gone == {topics.blob(one.manifest.artifacts["parameters"].sha256, 0)}
    bench.fetcher.follow(None, clock.now)
    assert bench.asked_topics == set()


def test_a_disk_that_takes_nothing_is_tried_before_more_is_sent(
    bench: Bench, broker: MemoryBroker, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    files = Files(1)
    retain(broker, topics, files)
    bench.fetcher.follow(files.manifest, bench.clock.now)
    with monkeypatch.context() as full:
        full.setattr("edge_agent.releases.chunks_on_disk.atomic_write", refuse)
        bench.fetch(files, 5)
        received = bench.link.traffic().bytes_down
        bench.fetch(files, 600)
        assert bench.link.traffic().bytes_down == received
        said = [problem.text for problem in bench.problems.all()]
        assert any("release 1 waits: No space left" in text for text in said)
    bench.fetch(files, 120)
    assert set(bench.taken.values()) == set(files.files.values())


def test_a_chunk_of_another_length_is_asked_for_and_an_empty_one_is_no_mistake(
    bench: Bench, clock: Clock
) -> None:
    files = Files(1)
    spec = files.manifest.artifacts["spec"]
    bench.fetcher.follow(files.manifest, clock.now)
    bench.listen()
    bench.fetcher.fetch([spec], clock.now)
    with pytest.raises(PayloadError):
        bench.fetcher.on_chunk(BlobChunk(spec.sha256, 0), b"short", clock.now)
    rests_until = bench.fetcher.rests_until
    assert rests_until > clock.now
    bench.fetcher.on_chunk(BlobChunk(spec.sha256, 0), b"", clock.now)
    assert bench.fetcher.rests_until == rests_until, "more of the same counts once"
    assert [request.blobs for request in bench.requests] == [{spec.sha256: (0,)}] * 2


def test_how_long_it_waits_is_handed_in(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock
) -> None:
    bench = Bench(tmp_path, broker, topics, clock, patience_s=500.0, longest_patience_s=500.0)
    files = Files(1)
    bench.fetcher.follow(files.manifest, clock.now)
    bench.fetch(files, 240)
    assert bench.requests == []
    bench.fetch(files, 3000)
    assert 3 <= len(bench.requests) <= 12


def test_what_comes_of_something_else_is_no_reason_to_wait_longer(
    tmp_path: Path, broker: MemoryBroker, topics: Topics, clock: Clock
) -> None:
    """A device that trains all the time gets receipts all the time, and no chunk."""
    files = Files(1)
    bench = Bench(tmp_path, broker, topics, clock)
    bench.fetcher.follow(files.manifest, clock.now)
    bench.listen()
    bench.link.subscribe([topics.receipt(DEVICE)])
    for _ in range(240):
        broker.accept(topics.receipt(DEVICE), bytes(500), retain=False)
        for event in bench.link.poll(0):
            if isinstance(event, Received):
                bench.link.acknowledge(event)
        bench.fetch(files, 1)
    assert 1 <= len(bench.requests) <= 4

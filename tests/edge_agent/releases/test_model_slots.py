"""Model slots: whatever happens during an install, a whole release is active afterwards."""

from pathlib import Path

import power_cut
import pytest
from tiny_fleet import Files, install, put, whole

from edge_agent.releases.model_slots import Slots
from models.errors import DigestMismatchError, TransientError
from models.host import durable


def test_nothing_is_active_before_the_first_release(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    assert slots.active is None
    assert slots.release == 0


def test_an_activated_release_is_there_after_a_restart(tmp_path: Path) -> None:
    install(Slots(tmp_path), Files(1))
    slots = Slots(tmp_path)
    assert slots.active == Files(1).manifest
    assert slots.spec(slots.active).task == "blobs"


def test_staging_does_not_touch_the_active_release(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    install(slots, Files(1))
    put(slots, Files(2))
    slots.stage(whole(Files(2)))
    assert slots.release == Slots(tmp_path).release == 1


def test_what_is_not_staged_cannot_be_activated(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    with pytest.raises(ValueError, match="not staged"):
        slots.activate(Files(1).manifest)


def test_a_file_with_another_digest_does_not_enter(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    artifact = Files(1).manifest.artifacts["infer"]
    with pytest.raises(DigestMismatchError):
        slots.add(artifact, [b"x" * artifact.size])
    assert not slots.has(artifact)
    assert list((tmp_path / "artifacts").iterdir()) == []


@pytest.mark.parametrize("kind", ["infer", "train", "spec", "parameters"])
def test_a_damaged_release_gives_way_to_the_one_before(tmp_path: Path, kind: str) -> None:
    slots = Slots(tmp_path)
    install(slots, Files(1))
    two = Files(2)
    install(slots, two)
    shared = two.manifest.artifacts[kind] == Files(1).manifest.artifacts[kind]
    path = Path(slots.path(two.manifest, kind))
    path.write_bytes(b"?" * path.stat().st_size)  # as long as before: only the digest tells
    again = Slots(tmp_path)
    assert again.release == (0 if shared else 1)
    assert any(f"its {kind} file is damaged" in sentence for sentence in again.damaged)


def test_a_release_on_a_bad_sector_gives_way_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(tmp_path)
    for number in (1, 2):
        install(slots, Files(number))
    unreadable = slots.path(Files(2).manifest, "parameters")

    def failing(path: str, mode: str) -> object:
        if path != unreadable:
            return open(path, mode)
        return open("/proc/self/mem", mode)  # reading its first byte is an input/output error

    monkeypatch.setattr("edge_agent.releases.model_slots.open", failing, raising=False)
    monkeypatch.setattr("models.host.files.READ_AGAIN_S", (0.0, 0.0))
    slots = Slots(tmp_path)
    assert slots.release == 1
    assert "parameters file is damaged" in " ".join(slots.damaged)


def test_without_a_readable_pointer_the_newer_whole_release_runs(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    install(slots, Files(1))
    install(slots, Files(2))
    (tmp_path / "active.json").write_bytes(b"\0\0\0")
    assert Slots(tmp_path).release == 2


def test_a_look_changes_nothing(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    install(slots, Files(1))
    path = Path(slots.path(Files(1).manifest, "infer"))
    path.write_bytes(b"?")
    (tmp_path / "artifacts" / "x.draft").write_bytes(b"")
    assert Slots(tmp_path, is_owner=False).release == 0
    assert path.exists()
    assert (tmp_path / "artifacts" / "x.draft").exists()


def test_garbage_goes_and_what_either_slot_names_stays(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    for number in (1, 2, 3):
        install(slots, Files(number))
    old = Files(1).manifest.artifacts["parameters"]
    assert slots.collect_garbage(keep={old.sha256}) == 0
    assert slots.collect_garbage() == 1
    assert not slots.has(old)
    assert slots.has(Files(2).manifest.artifacts["parameters"])


def test_install_survives_a_power_cut_at_every_step(tmp_path: Path) -> None:
    """Every disk that can be found after a cut has a whole active release: the old or the new."""
    origin = tmp_path / "origin"
    slots = Slots(origin)
    install(slots, Files(1))
    put(slots, Files(2))
    before = {str(p.relative_to(origin)): p.read_bytes() for p in origin.rglob("*") if p.is_file()}
    disk = {str(origin / name): data for name, data in before.items()}

    def switch() -> None:
        fresh = Slots(origin)
        fresh.stage(whole(Files(2)))
        fresh._read_slot = lambda slot: Files(2).manifest  # type: ignore[method-assign]
        fresh.activate(Files(2).manifest)

    seen = set()
    for count, (finished, outcome) in enumerate(
        power_cut.disks_after_power_cuts(durable, switch, disk)
    ):
        folder = tmp_path / str(count)
        for name, data in outcome.items():
            path = folder / Path(name).relative_to(origin)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        release = Slots(folder).release
        assert release == 2 if finished else release in (1, 2)
        seen.add(release)
    assert seen == {1, 2}


def test_a_staged_release_that_cannot_be_read_back_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(tmp_path)
    install(slots, Files(1))
    put(slots, Files(2))
    slots.stage(whole(Files(2)))
    with monkeypatch.context() as failing:
        failing.setattr(slots, "_read_slot", lambda slot: None)
        with pytest.raises(TransientError, match="read back"):
            slots.activate(Files(2).manifest)
    slots.activate(Files(2).manifest)
    assert slots.release == 2

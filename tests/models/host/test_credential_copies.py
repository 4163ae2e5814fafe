"""systemd's copies of files that only root may read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from models.host.credential_copies import outdated_copy, readable


@pytest.fixture
def handed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of copies; ``etc`` beside it is where the originals belong."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "copies").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "copies"))
    return tmp_path / "copies"


def test_a_file_that_we_may_read_is_taken_itself(handed: Path, tmp_path: Path) -> None:
    original = tmp_path / "etc" / "agent.password"
    original.write_text("new")
    (handed / "agent.password").write_text("old")
    assert readable(original) == original


def test_a_file_of_root_is_taken_from_its_copy_until_it_changes(
    handed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_another_user: Callable[[Path, Callable[[], object]], str],
) -> None:
    original, copy = Path("etc/agent.password"), Path("copies/agent.password")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "copies")
    (tmp_path / copy).write_text("a copy")
    (tmp_path / copy).chmod(0o644)
    for path in (tmp_path, tmp_path / "etc", handed):
        path.chmod(0o777)

    def replace(text: str) -> None:
        draft = original.with_name("draft")
        draft.write_text(text)
        draft.chmod(0)
        draft.replace(original)

    def looks() -> list[object]:
        replace("root's")
        seen: list[object] = [str(readable(original)), outdated_copy()]
        replace("another")
        seen += [str(readable(original)), str(outdated_copy())]
        replace("")  # a mistake: the copy is better
        seen.append(outdated_copy())
        original.unlink()
        seen += [str(readable(original)), outdated_copy()]
        original.write_text("ours")
        seen += [str(readable(original)), outdated_copy()]
        return seen

    assert as_another_user(tmp_path, looks) == repr(
        [str(copy), None, str(copy), str(original), None, str(copy), None, str(original), None]
    )


def test_what_systemd_alone_has_needs_no_original(handed: Path, tmp_path: Path) -> None:
    """As with `LoadCredentialEncrypted=`."""
    original = tmp_path / "etc" / "agent.key"
    (handed / "agent.key").write_text("decrypted by systemd")
    assert readable(original) == handed / "agent.key"
    assert outdated_copy() is None


def test_an_empty_line_stands_for_a_file_that_is_not_there(handed: Path, tmp_path: Path) -> None:
    original = tmp_path / "etc" / "agent.password"
    (handed / "agent.password").write_text("\n")
    assert readable(original) == original


def test_without_systemd_a_name_means_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert readable(tmp_path / "none") == tmp_path / "none"

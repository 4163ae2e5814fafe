"""What a link logs in with: settings that fit together, files that are right, and one sentence."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.access.credentials import Credentials, CredentialSource, Login, login
from models.access.tls_files import TlsFiles
from models.errors import UsageError

SECRET = "tulips-in-may"


def settings(**changes: Any) -> Login:
    given: dict[str, Any] = {
        "broker": "mqtt://broker",
        "username": None,
        "password": None,
        "password_file": None,
        "tls": TlsFiles(),
        "written_in": None,
    }
    return login(**given | changes)


def in_file(path: Path) -> CredentialSource:
    return CredentialSource(Login("board-1", password_file=path))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"username": "a", "password": SECRET, "password_file": Path("p")},
            ["both password and password_file", "leave out password"],
        ),
        ({"password": SECRET}, ["no username"]),
        ({"password_file": Path("p")}, ["no username"]),
        ({"username": "a"}, ["no password", "password_file"]),
        ({"broker": "mqtts://b", "tls": TlsFiles(key=Path("k"))}, ["no certificate"]),
        ({"tls": TlsFiles(ca=Path("ca.crt"))}, ["mqtts://", "8883"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_sentence(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        settings(**changes)
    for part in parts:
        assert part in str(error.value)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_fit_are_taken() -> None:
    files = TlsFiles(ca=Path("ca"), cert=Path("c"), key=Path("k"))
    assert settings() == Login()
    assert settings(username="a", password="") == Login("a", "")
    assert settings(broker="mqtts://b", tls=files).tls == files
    assert settings(broker="mqtts://b").tls == TlsFiles()


@pytest.mark.parametrize(
    "content",
    [
        b"tulips-in-may",
        b"tulips-in-may\n",
        b"tulips-in-may\r\n",
        b"\xef\xbb\xbftulips-in-may\r\n",
        b"tulips-in-may\n# rotated in May\n",
    ],
)
def test_the_first_line_is_the_password_however_an_editor_ended_it(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)
    source = in_file(path)
    assert source.read() == Credentials("board-1", SECRET)
    assert (source.problem, source.warning) == ("", "")


def test_spaces_belong_to_a_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(" two words \n")
    assert in_file(tmp_path / "password").read().password == " two words "


def missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def empty_first_line(path: Path) -> None:
    path.write_bytes(b"\ntulips\n")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def with_a_nul(path: Path) -> None:
    path.write_bytes(b"tul\0ips\n")


def utf_16(path: Path) -> None:
    path.write_text(SECRET, "utf-16")


def a_megabyte(path: Path) -> None:
    path.write_bytes(b"x" * 1_000_000)


def a_directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


WRONG = {
    missing: "No such file",
    empty: "first line is empty",
    empty_first_line: "first line is empty",
    binary: "not text",
    with_a_nul: "not text",
    utf_16: "not text in UTF-8 but UTF-16",
    a_megabyte: "1000000 bytes are too many",
    a_directory: "a directory",
    a_pipe: "not a file",
}


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_a_file_that_is_no_password_is_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "password"
    spoil(path)
    source = in_file(path)
    with pytest.raises(UsageError) as error:
        source.read()
    assert str(error.value).startswith(f"password_file {path}: ")
    assert WRONG[spoil] in str(error.value)
    assert source.problem == str(error.value)


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_what_was_read_before_stays_in_force_while_the_file_is_wrong(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "password"
    path.write_text(SECRET)
    source = in_file(path)
    good = source.read()
    spoil(path)
    assert source.read() == good
    assert WRONG[spoil] in source.problem
    assert source.problem.endswith("; what was read before stays in force")
    assert SECRET not in source.problem
    path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    path.write_text("roses\n")
    assert source.read() == Credentials("board-1", "roses")
    assert source.problem == ""


def test_a_file_that_we_may_not_read_any_more_is_one_sentence(
    tmp_path: Path, as_another_user: Callable[[Path, Callable[[], object]], str]
) -> None:
    tmp_path.chmod(0o777)

    def looks() -> tuple[str | None, str]:
        path = Path("password")
        path.write_text(SECRET)
        source = in_file(path)
        source.read()
        path.chmod(0)
        return source.read().password, source.problem

    said = (
        "password_file password: permission denied; docs/mosquitto.md says who may read secrets; "
        "what was read before stays in force"
    )
    assert as_another_user(tmp_path, looks) == repr((SECRET, said))


def test_a_secret_that_everyone_may_read_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(SECRET)
    path.chmod(0o644)
    source = in_file(path)
    assert source.read().password == SECRET
    assert source.warning == (
        f"everyone on this machine may read the password_file in {path}: chmod 600 {path}"
    )
    settings_file = CredentialSource(Login("a", SECRET, written_in=path))
    settings_file.read()
    assert "the password in" in settings_file.warning
    path.chmod(0o600)
    source.read()
    assert source.warning == ""


def test_no_representation_shows_a_password() -> None:
    for value in (Login("a", SECRET), Credentials("a", SECRET)):
        assert SECRET not in f"{value} {value!r}"


@pytest.fixture
def pems(tmp_path: Path) -> Path:
    """ca, a certificate with its key, another key, an encrypted key."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("ca", "board", "other"):
        subject = ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        openssl("req", "-x509", *curve, *subject)
    openssl(*("pkey", "-in", "board.key", "-aes256", "-passout", "pass:x", "-out", "encrypted.key"))
    (tmp_path / "both.pem").write_bytes(
        (tmp_path / "board.crt").read_bytes() + (tmp_path / "board.key").read_bytes()
    )
    (tmp_path / "note.txt").write_text("no certificate")
    return tmp_path


@pytest.mark.parametrize(
    ("ca", "cert", "key", "said"),
    [
        ("none.crt", None, None, "ca {}/none.crt: No such file"),
        ("note.txt", None, None, "ca {}/note.txt: no certificates in PEM format"),
        (".", None, None, "not a file, but a directory"),
        ("ca.crt", "board.crt", None, "name the key's file as `key`"),
        ("ca.crt", "board.crt", "none.key", "key {}/none.key: No such file"),
        ("ca.crt", "board.crt", "other.key", "do not belong together"),
        ("ca.crt", "board.crt", "encrypted.key", "the key is encrypted"),
        ("ca.crt", "note.txt", "board.key", "certificate {}/note.txt with key"),
    ],
)
def test_files_for_tls_that_are_wrong_are_one_sentence(
    pems: Path, ca: str, cert: str | None, key: str | None, said: str
) -> None:
    files = TlsFiles(*(name and pems / name for name in (ca, cert, key)))
    with pytest.raises(UsageError) as error:
        CredentialSource(Login(tls=files)).read()
    assert said.format(pems) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_may_hold_certificate_and_key(pems: Path) -> None:
    source = CredentialSource(Login(tls=TlsFiles(pems / "ca.crt", pems / "both.pem")))
    assert source.read().tls is not None


def test_certificates_are_new_credentials_when_their_content_changes_only(pems: Path) -> None:
    files = TlsFiles(pems / "ca.crt", pems / "board.crt", pems / "board.key")
    source = CredentialSource(Login(tls=files))
    first = source.read()
    for path in (pems / "ca.crt", pems / "board.key"):
        path.write_bytes(path.read_bytes())
    assert source.read() == first
    (pems / "board.crt").write_bytes((pems / "other.crt").read_bytes())
    assert source.read() == first  # half of a change: the key is still the old one
    assert "do not belong together" in source.problem
    (pems / "board.key").write_bytes((pems / "other.key").read_bytes())
    assert source.read() != first
    assert source.problem == ""

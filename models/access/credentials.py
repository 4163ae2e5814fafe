"""Who we are to a broker: name, password and certificate, read again before each attempt."""

import contextlib
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from models.access.broker_address import broker_address
from models.access.tls_files import TlsFiles, bytes_of_small_file, tls_context, tls_digest
from models.errors import UsageError

__all__ = ["CREDENTIAL_KEYS", "CredentialSource", "Credentials", "Login", "login"]

# Of [fleet], on both sides: what may change while we run.
CREDENTIAL_KEYS = ("username", "password", "password_file", "ca", "certificate", "key")
MAX_PASSWORD_BYTES = 65_535  # MQTT's own limit


class Login(NamedTuple):
    """The settings to log in with; they name files, and may change with them."""

    username: str | None = None
    password: str | None = None
    password_file: Path | None = None
    tls: TlsFiles | None = None  # None: in the open
    written_in: Path | None = None  # the file that holds ``password``

    def __repr__(self) -> str:  # may get into a log
        return f"Login(username={self.username!r})"


class Credentials(NamedTuple):
    """What the settings and the files came to; equal as long as nothing changes."""

    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"


def login(
    *,
    broker: str,
    username: str | None,
    password: str | None,
    password_file: Path | None,
    tls: TlsFiles,
    written_in: Path | None,
) -> Login:
    """Return the settings of ``[fleet]``, if they make sense together; no file is opened.

    Raises:
        UsageError: they contradict each other, one lacks its other half, or ``broker`` is no
            address.
    """
    _, _, is_tls = broker_address(broker)
    if password is not None and password_file is not None:
        raise UsageError(
            "[fleet] has both password and password_file: leave out password, the older way"
        )
    has_password = password is not None or password_file is not None
    if has_password and username is None:
        raise UsageError("[fleet] has a password and no username: add the account's name")
    if username is not None and not has_password:
        raise UsageError(
            "[fleet] has a username and no password: add password_file, or password = '' for a "
            "broker that wants none"
        )
    if tls.key is not None and tls.cert is None:
        raise UsageError("[fleet] has a key and no certificate: add the certificate's file")
    if not is_tls and tls != TlsFiles():
        raise UsageError(
            "[fleet] has files for TLS, and broker is an address without: write mqtts:// there, "
            "usually with port 8883"
        )
    return Login(username, password, password_file, tls if is_tls else None, written_in)


class CredentialSource:
    """Says what to log in with now. Safe to use from several threads.

    While a file is wrong, what was last read well stays in force, and ``problem`` says so.
    """

    def __init__(self, wanted: Login) -> None:
        self._lock = threading.Lock()
        self._login = wanted
        self._good: Credentials | None = None
        self._tls: tuple[bytes, ssl.SSLContext] | None = None
        self.problem = ""  # of the last `read`
        self.warning = ""  # something that works and should not stay so
        self.reads = 0
        self.watchers: list[Callable[[], None]] = []  # called after each `replace`

    def watch(self, look: Callable[[], None]) -> None:
        """Call ``look`` after each `replace`."""
        self.watchers.append(look)

    def unwatch(self, look: Callable[[], None]) -> None:
        if look in self.watchers:
            self.watchers.remove(look)

    def replace(self, wanted: Login) -> None:
        """Read what ``wanted`` names, now and from now on; `problem` says what is wrong."""
        with self._lock:
            self._login = wanted
        with contextlib.suppress(UsageError):
            self.read()
        for look in tuple(self.watchers):
            look()

    def read(self) -> Credentials:
        """Return what the files say now, or what they last said while they made sense.

        Raises:
            UsageError: they never did.
        """
        with self._lock:
            self.reads += 1
            try:
                self._good = self._read()
            except UsageError as error:
                if self._good is None:
                    self.problem = str(error)
                    raise
                self.problem = f"{error}; what was read before stays in force"
            else:
                self.problem = ""
            return self._good

    def _read(self) -> Credentials:
        wanted = self._login
        password = wanted.password
        if wanted.password_file is not None:
            password = _first_line(wanted.password_file)
        context = None
        if wanted.tls is not None:
            context = self._context(wanted.tls)
        self.warning = _too_open(wanted)
        return Credentials(wanted.username, password, context)

    def _context(self, files: TlsFiles) -> ssl.SSLContext:
        digest = tls_digest(files)
        if self._tls is None or self._tls[0] != digest:
            self._tls = digest, tls_context(files)
        return self._tls[1]


def _first_line(path: Path) -> str:
    data = bytes_of_small_file("password_file", path, at_most=MAX_PASSWORD_BYTES)
    try:
        line = data.decode("utf-8-sig").partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        line = "\0"
    if not line:
        raise UsageError(f"password_file {path}: its first line is empty; it is the password")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(f"password_file {path}: it is not text in UTF-8 but UTF-16: save it anew")
    if not line.isprintable():
        raise UsageError(
            f"password_file {path}: its first line is not text, but it is the password"
        )
    return line


def _too_open(wanted: Login) -> str:
    secrets = {"password": wanted.written_in} if wanted.password else {}
    secrets["password_file"] = wanted.password_file
    secrets["key"] = wanted.tls.key if wanted.tls else None
    for name, path in secrets.items():
        try:
            if path is not None and path.stat().st_mode & stat.S_IROTH:
                return f"everyone on this machine may read the {name} in {path}: chmod 600 {path}"
        except OSError:  # it lies where we may not look: it is not open to everyone
            continue
    return ""

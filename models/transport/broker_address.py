"""Where a broker is and how to trust it: its URL, and the files for TLS."""

import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from models.errors import UsageError


class TlsFiles(NamedTuple):
    """PEM files; ``ca`` None trusts the system's authorities, ``cert`` and ``key`` are ours."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def broker_address(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is wanted, of ``mqtt://HOST[:PORT]`` or ``mqtts://``.

    Raises:
        UsageError: it is no such URL.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        host, port = None, None
    else:
        if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
            host = None
    if host is None or parts.scheme not in ("mqtt", "mqtts"):
        # Not the URL itself: it might contain a password.
        raise UsageError(
            "the broker's address must look like mqtt://HOST:PORT or mqtts://HOST:PORT"
        )
    tls = parts.scheme == "mqtts"
    return host, port or (8883 if tls else 1883), tls


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context that checks the broker's certificate and name.

    Raises:
        UsageError: a file is missing or unusable.
    """
    try:
        context = ssl.create_default_context(cafile=files.ca)
        if files.cert is not None:
            context.load_cert_chain(files.cert, files.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ", ".join(str(name) for name in files if name is not None)
        raise UsageError(f"the TLS files {names} are not usable: {error}") from None
    return context

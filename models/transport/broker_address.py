"""Where a broker is: its URL."""

from urllib.parse import urlsplit

from models.errors import UsageError


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

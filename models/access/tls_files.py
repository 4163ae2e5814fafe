"""The PEM files that a broker is checked with, and those that we show it."""

import os
import ssl
import stat
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from models.errors import UsageError
from models.host.credential_copies import readable

__all__ = ["TlsFiles", "bytes_of_small_file", "tls_context", "tls_digest"]

MAX_PEM_BYTES = 4 << 20  # all authorities of a system are a quarter of a megabyte


class TlsFiles(NamedTuple):
    """PEM files; ``ca`` None trusts the system's authorities, ``cert`` and ``key`` are ours."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def bytes_of_small_file(name: str, path: Path, *, at_most: int) -> bytes:
    """Return what ``path`` holds; ``name`` is the setting that says so.

    Raises:
        UsageError: it is no file that can be read, or longer than ``at_most`` bytes.
    """
    try:
        # Not blocking: a named pipe would hold us up for ever.
        descriptor = os.open(readable(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{name} {path}: not a file, but a directory or a device")
            if found.st_size > at_most:
                raise UsageError(
                    f"{name} {path}: {found.st_size} bytes are too many: is it another file?"
                )
            return os.read(descriptor, at_most)
        finally:
            os.close(descriptor)
    except PermissionError:
        raise UsageError(
            f"{name} {path}: permission denied; docs/mosquitto.md says who may read secrets"
        ) from None
    except OSError as error:
        raise UsageError(f"{name} {path}: {error.strerror}") from None


def tls_digest(files: TlsFiles) -> bytes:
    """Return what changes when a file does.

    Raises:
        UsageError: one cannot be read.
    """
    digest = sha256()
    for name, path in zip(("ca", "certificate", "key"), files, strict=True):
        if path is not None:
            data = bytes_of_small_file(name, path, at_most=MAX_PEM_BYTES)
            digest.update(sha256(data).digest())
    return digest.digest()


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context that checks the broker's certificate and name.

    Raises:
        UsageError: a file is missing or unusable.
    """
    tls_digest(files)  # says which file cannot be read; OpenSSL does not
    try:
        context = ssl.create_default_context(cafile=files.ca and readable(files.ca))
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise UsageError(f"ca {files.ca}: no certificates in PEM format in it") from None
    if files.cert is not None:
        _show(context, files.cert, files.key)
    return context


def _show(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    is_encrypted = False

    def pass_phrase() -> str:  # without it OpenSSL asks on the terminal, and waits
        nonlocal is_encrypted
        is_encrypted = True
        return ""

    try:
        context.load_cert_chain(readable(cert), key and readable(key), pass_phrase)
    except (OSError, ValueError) as error:
        where = f"certificate {cert}" if key is None else f"certificate {cert} with key {key}"
        if is_encrypted:
            why = (
                "the key is encrypted, and nobody is here to type its pass phrase: store it "
                "decrypted, as `openssl pkey -in OLD -out NEW` does, with mode 600"
            )
        elif getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            why = "the two do not belong together"
        elif key is None:
            why = "no certificate with its key in PEM format in it; name the key's file as `key`"
        else:
            why = f"not usable ({getattr(error, 'reason', None) or error})"
        raise UsageError(f"{where}: {why}") from None

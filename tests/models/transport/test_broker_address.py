"""Where a broker is, and how it is trusted."""

from pathlib import Path

import pytest

from models.errors import UsageError
from models.transport.broker_address import broker_address
from models.transport.tls_files import TlsFiles, tls_context


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker.example", ("broker.example", 1883, False)),
        ("mqtt://127.0.0.1:18830/", ("127.0.0.1", 18830, False)),
        ("mqtts://broker", ("broker", 8883, True)),
        ("mqtts://[::1]:42", ("::1", 42, True)),
    ],
)
def test_an_address_is_host_port_and_whether_to_encrypt(
    url: str, address: tuple[str, int, bool]
) -> None:
    assert broker_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker:1883",
        "http://broker",
        "mqtt://",
        "mqtt://broker:port",
        "mqtt://broker:99999",
        "mqtt://broker/topic",
        "mqtt://user:secret@broker",
        "mqtt://a..b",
    ],
)
def test_a_wrong_address_is_said_without_repeating_what_may_be_secret(url: str) -> None:
    with pytest.raises(UsageError, match="mqtt://HOST:PORT") as error:
        broker_address(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("files", [("ca", "nothing"), ("ca", "garbage"), ("cert", "garbage")])
def test_an_unusable_tls_file_is_a_sentence(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("no certificate")
    tls = TlsFiles(**{files[0]: tmp_path / files[1]})
    with pytest.raises(UsageError, match=files[1]):
        tls_context(tls)

"""Where a broker is, and how it is trusted."""

from pathlib import Path

import pytest

from models.access.broker_address import broker_address
from models.access.tls_files import TlsFiles, tls_context
from models.errors import UsageError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker.example", ("broker.example", 1883, False)),
        ("mqtt://127.0.0.1:18830/", ("127.0.0.1", 18830, False)),
        ("mqtts://broker", ("broker", 8883, True)),
        ("mqtts://[::1]:42", ("::1", 42, True)),
        ("mqtt://[fe80::1%eth0]", ("fe80::1%eth0", 1883, False)),
        ("mqtt://my_hub", ("my_hub", 1883, False)),
        ("mqtt://k\u00fcche.local:1884", ("k\u00fcche.local", 1884, False)),
    ],
)
def test_an_address_is_host_port_and_whether_to_encrypt(
    url: str, address: tuple[str, int, bool]
) -> None:
    assert broker_address(url) == address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "there is nothing"),
        ("broker:1883", "write mqtt:// in front"),
        ("192.0.2.1", "write mqtt:// in front"),
        ("tcp://secret", "write mqtt:// in the place of tcp://"),
        ("ssl://broker:8883", "write mqtts:// in the place of ssl://"),
        ("ws://broker:9001/mqtt", "WebSockets are not spoken"),
        ("http://secret", "no web server"),
        ("amqp://broker", "only mqtt:// and mqtts://"),
        ("mqtt://", "the host's name is missing"),
        ("mqtt://:1883", "the host's name is missing"),
        ("mqtt://broker:port", "the port is a number"),
        ("mqtt://broker:99999", "the port is a number"),
        ("mqtt://broker:0", "the port is a number"),
        ("mqtt://fd00::1:1883", "stands in brackets"),
        ("mqtt://broker/secret", "nothing may stand behind the port"),
        ("mqtt://broker:1883?clientid=secret", "nothing may stand behind the port"),
        ("mqtt://user:secret@broker", "username and password_file"),
        ("mqtts://user@broker:8883", "username and password_file"),
        ("mqtt://user:se/cret@broker", "username and password_file"),
        ("mqtt://user:secret#1@broker", "username and password_file"),
        ("mqtt://broker secret", "a blank"),
        ("mqtt://broker\u200b", "cannot be seen"),
        ("mqtt://a..b", "the host's name is none"),
        ("mqtt:\\\\secret:1883", "/ stands there, not backslashes"),
        ("mqtt://secret\\x", "/ stands there, not backslashes"),
        ("mqtt://user:se\\cret@broker", "username and password_file"),
        ("mqtt://secret,other", "one broker only"),
        ("mqtt://$HOST:1883", "no host has '$' in its name"),
        ("mqtt://<host>:1883", "no host has '<' in its name"),
        ("mqtt://secret%20x", "no host has '%' in its name"),
        ("mqtt://*", "no host has '*' in its name"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_without_what_may_be_secret(
    url: str, said: str
) -> None:
    with pytest.raises(UsageError, match="mqtt://HOST:PORT") as error:
        broker_address(url)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("files", [("ca", "nothing"), ("ca", "garbage"), ("cert", "garbage")])
def test_an_unusable_tls_file_is_a_sentence(files: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("no certificate")
    tls = TlsFiles(**{files[0]: tmp_path / files[1]})
    with pytest.raises(UsageError, match=files[1]):
        tls_context(tls)

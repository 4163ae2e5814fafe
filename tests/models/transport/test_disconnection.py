"""Sentences about why a broker was not reached that no real broker of ours brings about."""

import ssl

import pytest

from models.transport.disconnection import Client, refused, unreachable

US = Client("farm.example", 8883, "board-1", has_tls=True, has_password=True, clock_s=1e9)


def not_verified(code: int) -> str:
    error = ssl.SSLCertVerificationError("certificate verify failed")
    error.verify_code, error.verify_message = code, "OpenSSL's words"
    why = unreachable(error, US)
    assert why.needs_help
    assert why.text.endswith("(certificate verify failed: OpenSSL's words)")
    return why.text


@pytest.mark.parametrize("code", [9, 10])
def test_a_certificate_out_of_its_time_names_the_day_that_the_clock_has(code: int) -> None:
    """The day, not the time: the sentence shall not be news at each attempt."""
    assert "by the clock here, which says 2001-09-09: set it" in not_verified(code)


@pytest.mark.parametrize("code", [2, 18, 19, 20, 21])
def test_an_unknown_authority_is_told_with_the_setting(code: int) -> None:
    assert "the one that signed it in fleet.ca" in not_verified(code)


def test_what_else_is_wrong_with_a_certificate_is_not_put_on_its_authority() -> None:
    assert "fleet.ca" not in not_verified(66)  # its key is too weak


def test_a_client_without_a_password_is_told_its_client_id_too() -> None:
    """Mosquitto answers "Not authorized" also to an id that its clientid_prefixes do not have."""
    said = refused(0x87, "Not authorized", US._replace(has_tls=False, has_password=False)).text
    assert "set fleet.username and a password, or allow the client id board-1 there" in said

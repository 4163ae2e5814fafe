"""Bytes and topics on the wire, as device and server both read and write them."""

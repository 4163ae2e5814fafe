"""Payloads and compressed weights as graphs."""

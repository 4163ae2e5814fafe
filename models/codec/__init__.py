"""A delta to few bytes and back."""

"""A bundle made, written, read and exported."""

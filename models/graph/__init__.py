"""Graphs that train, read from graphs that answer."""

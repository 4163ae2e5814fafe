"""The fleet for people: facts, views, tables."""

"""A whole model in few bytes."""

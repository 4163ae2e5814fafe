"""A task out of a model and data."""

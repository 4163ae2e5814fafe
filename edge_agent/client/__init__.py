"""What applications install: one file, a distribution of its own (docs/inference.md)."""

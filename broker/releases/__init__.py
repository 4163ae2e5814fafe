"""A task's line of releases: made, gated, published, exported."""

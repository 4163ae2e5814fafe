"""A task's line of releases: made, gated, exported."""

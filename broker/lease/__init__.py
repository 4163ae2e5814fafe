"""One server serves a fleet: who, and how it is."""

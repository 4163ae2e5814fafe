"""Real processes of a fleet on this machine."""

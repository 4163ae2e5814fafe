"""Who is in the fleet: heard, silent, unserved, forgotten."""

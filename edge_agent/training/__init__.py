"""From samples to an update: when, how much, and by which child."""

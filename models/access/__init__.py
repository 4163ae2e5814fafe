"""Where a broker is, and who we are to it."""

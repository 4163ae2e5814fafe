"""What the machine gives both services: files that survive, space, settings, service life."""

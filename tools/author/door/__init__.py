"""A bundle is run before it is believed."""

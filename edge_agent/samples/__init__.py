"""The device's own samples: files, checks, segments."""

"""What a device may spend on learning: seconds, bytes, joules a day."""

"""What a device says of itself, to the fleet and on the board."""

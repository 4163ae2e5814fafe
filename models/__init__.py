"""What device and server must agree on, byte for byte. Imports nothing else of ours."""

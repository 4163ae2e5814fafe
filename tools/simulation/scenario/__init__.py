"""What a simulated fleet is like, and what may go wrong."""

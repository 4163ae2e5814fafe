"""What an operator asks beside a running server."""

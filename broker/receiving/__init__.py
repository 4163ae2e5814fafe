"""From messages to committed updates, and back to receipts."""

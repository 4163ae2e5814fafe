"""The process that answers applications, and its door."""

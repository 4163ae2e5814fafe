"""The one database of a server."""

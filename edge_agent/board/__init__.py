"""This machine and this process: children, identity, problems."""

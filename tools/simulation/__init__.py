"""Whole fleets in one process: the real agent and server on a virtual clock, network and disk."""

"""The books of a simulated fleet: which promise was broken."""

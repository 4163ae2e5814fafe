"""Machines, disks, network and time of a simulated fleet."""

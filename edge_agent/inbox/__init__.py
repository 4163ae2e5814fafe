"""The inbox: what lies there, what was taken, what waits and what was put aside."""

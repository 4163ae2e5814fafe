"""The user's arrays as they are, converted inside the graph."""

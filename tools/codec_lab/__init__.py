"""The codec under a lens: deltas, bounds, peers, pictures, payloads."""

"""The training step: forward, loss, backward, update."""

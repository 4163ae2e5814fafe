"""The published experiments, made again with the product's own pure functions."""

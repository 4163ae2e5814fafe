"""Gradients of sliding windows and of sampled grids."""

"""What simulated devices learn: lightly, or really."""

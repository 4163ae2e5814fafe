"""What is learned, on its way up."""

"""What a sample of a task is: arrays, labels, pictures, and other people's files."""

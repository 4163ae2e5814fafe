"""A batch of any size: where it is, and how it becomes free."""

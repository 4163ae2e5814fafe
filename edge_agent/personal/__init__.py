"""What is this device's own: which model it runs, and how good its models are."""

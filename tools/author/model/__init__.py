"""Other people's models: read without trust, understood, adapted."""

"""A link to an MQTT broker, and all that may go wrong on it."""

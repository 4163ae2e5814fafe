"""What every device may fetch, as messages that the MQTT broker retains."""

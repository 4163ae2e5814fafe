"""What a server must not forget beside its database: artifacts, vectors, memories of devices."""

"""What comes down: from a manifest to an installed release."""

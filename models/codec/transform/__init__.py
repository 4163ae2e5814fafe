"""The dense frame: a delta as few whole numbers."""

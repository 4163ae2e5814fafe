"""Few coordinates: coresets, indices, tickets."""

"""What runs in the peers' own environments: copied there, never imported by the product."""

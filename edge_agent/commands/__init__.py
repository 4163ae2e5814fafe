"""What a person asks beside a running agent."""

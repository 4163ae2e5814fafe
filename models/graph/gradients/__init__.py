"""One gradient rule per operator."""

"""Nets to begin with, written in torch. Author side."""

"""The demo: its story, troubles, view, report and picture."""

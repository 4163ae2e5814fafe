"""From waiting updates to a step."""

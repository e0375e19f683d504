"""State, loss, optimizer, step and loop."""

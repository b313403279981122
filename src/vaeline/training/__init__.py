"""State, step, trainer, checkpoint. Knows only a Tracker protocol."""

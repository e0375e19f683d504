"""Checkpoints of a run: saving them, verifying them by a manifest, reading them in slices."""

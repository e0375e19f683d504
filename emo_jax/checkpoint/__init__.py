"""Checkpoints of a run: saved, checked by a manifest, and read slice by slice."""

"""A run on disk: its folder and who may use it, its lock, its metrics, how it was started."""

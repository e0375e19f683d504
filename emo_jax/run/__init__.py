"""A run on disk: its folder and who may use it, lock, metrics, goodput, status, how it started."""

"""Ahead-of-time compilation of the train step for a TPU topology, on a machine without TPUs."""

"""Ahead of time: the train step compiled for a TPU topology on a machine that has none."""

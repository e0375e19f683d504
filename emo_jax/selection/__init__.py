"""Choosing which experts of a model to keep for some documents."""

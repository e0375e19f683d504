"""Texts from a model: cache, drawing, tokens, texts."""

"""Tokenizers, whatever file they come from; the library that runs them."""

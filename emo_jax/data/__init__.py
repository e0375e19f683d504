"""Tokens: stores and files of others → windows → batches."""

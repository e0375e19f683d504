"""Modules of a model: chosen and written, put together, merged back, extended, finetuned."""

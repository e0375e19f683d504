"""Modules of a model: selecting, composing, merging back, extending and finetuning them."""

"""Small random models, and golden folders of the PyTorch reference."""

from hf_folders import golden, make_model, make_older, step_emo, transformers_at  # noqa: F401

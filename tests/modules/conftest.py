"""Small random models."""

from hf_folders import make_model  # noqa: F401

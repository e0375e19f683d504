"""The dense model whose branches are made here, a store of its bytes, and small random models."""

from branching import byte_store, dense_seed  # noqa: F401
from hf_folders import make_model  # noqa: F401

"""The dense model whose branches are made here, and a store of its bytes."""

from branching import byte_store, dense_seed  # noqa: F401

"""Configs for analysing or cutting a model: the same parameters with another config."""

import dataclasses

from emo_jax.config import Config


def within_documents(config: Config) -> Config:
    """The same model with attention within documents, since a module serves one at a time."""
    if config.model.attention == "document":
        return config
    model = dataclasses.replace(config.model, attention="document")
    return dataclasses.replace(config, model=model)

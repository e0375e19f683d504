"""Configs for analysing or cutting a model: the same parameters with another config."""

import dataclasses

from emo_jax.config import Config


def within_documents(config: Config) -> Config:
    """The same model with attention within documents, since a module serves one at a time."""
    if config.model.attention == "document":
        return config
    model = dataclasses.replace(config.model, attention="document")
    return dataclasses.replace(config, model=model)


def undropped(config: Config) -> Config:
    """The same model without dropping: tokens of one domain go to few devices."""
    if config.moe is None or not config.moe.receive_factor:
        return config
    return dataclasses.replace(config, moe=dataclasses.replace(config.moe, receive_factor=0.0))

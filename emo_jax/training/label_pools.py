"""The labels of a run whose pools follow documents' domains: those of its data, checked first."""

import dataclasses

from emo_jax.config import Config
from emo_jax.config.labels import parse_label
from emo_jax.data.sources import MixedSource
from emo_jax.data.stream import TokenSource
from emo_jax.documents.records import UNKNOWN_DOMAIN
from emo_jax.errors import ConfigError, UsageError


def with_labels(config: Config, source: TokenSource) -> Config:
    """The config with `moe.pool.labels` in the order of the data's domains.

    Labels that are given are put into that order; without any, they are all domains. The run's
    config.json has them, so that a run goes on with the same, and others can tell what they are.

    Raises:
      UsageError: documents have no domain, so that they cannot have a pool.
      ConfigError: a domain has no label, a label is not a domain of the data, or a name cannot
        be a label.
    """
    moe = config.moe
    if moe is None or not moe.pool.labelled:
        return config
    stores = ", ".join(config.data.stores[:3])
    _check_all_have_one(source, stores)
    given = {parse_label(label)[0]: label for label in moe.pool.labels}
    for name in source.domains:
        if "," in name or name != name.strip() or parse_label(name)[1] is not None:
            raise UsageError(
                f"{stores}: domain {name!r} cannot be a label (commas, spaces around it, or a range"
                " of experts); prepare the documents with another name"
            )
        if given and name not in given:
            raise ConfigError(
                f"config.moe.pool.labels: has no domain {name!r}, which documents of {stores} have;"
                " add it, or leave all out to take those of the data"
            )
    for name in given:
        if name not in source.domains:
            raise ConfigError(
                f"config.moe.pool.labels: {name!r} is no domain of {stores}"
                f" ({', '.join(source.domains[:8])}); leave it out"
            )
    labels = tuple(given.get(name, name) for name in source.domains)
    pool = dataclasses.replace(moe.pool, labels=labels)
    return dataclasses.replace(config, moe=dataclasses.replace(moe, pool=pool))


def _check_all_have_one(source: TokenSource, stores: str) -> None:
    lacking = ""
    if not source.domains:
        lacking = "none of its documents has a domain"
    elif UNKNOWN_DOMAIN in source.domains and source.domains != (UNKNOWN_DOMAIN,):
        lacking = f"some of its documents have none (they are {UNKNOWN_DOMAIN!r})"
    elif source.domains == (UNKNOWN_DOMAIN,):
        lacking = f"none of its documents has a domain (all are {UNKNOWN_DOMAIN!r})"
    elif isinstance(source, MixedSource):
        bare = source.without_domains()
        lacking = f"documents of {bare[0]} have none" if bare else ""
    if lacking:
        raise UsageError(
            f"{stores}: pools by label need a domain for every document, and {lacking}; give it"
            " with emo prepare --domain-field, or with a mixture's entry domain"
        )

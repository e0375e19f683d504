"""A digest of a config."""

import dataclasses
import hashlib
import json
from typing import Any

from emo_jax.config.fields import Config


def config_digest(config: Config) -> str:
    """The SHA-256 of the fields of a config that do not have their defaults, as hex digits.

    A field that a newer version adds leaves the digests of older configs as they are.
    """
    text = json.dumps(_given(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _given(section: Any) -> Any:
    if not dataclasses.is_dataclass(section):
        return section
    found = {}
    for field in dataclasses.fields(section):
        value, default = getattr(section, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            found[field.name] = _given(value)
    return found

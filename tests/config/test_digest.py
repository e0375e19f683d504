"""A digest of a config is of what was given, so that new fields leave old digests as they are."""

import dataclasses

from tiny import tiny_config

from emo_jax.config import ModelConfig
from emo_jax.config.digest import config_digest


def test_a_field_with_its_default_is_left_out(monkeypatch):
    config = tiny_config()
    known = config_digest(config)
    fields = dataclasses.fields

    def without_norm_eps(section):
        every = fields(section)
        return [f for f in every if not (isinstance(section, ModelConfig) and f.name == "norm_eps")]

    monkeypatch.setattr(dataclasses, "fields", without_norm_eps)
    assert config_digest(config) == known  # as by a version that does not have the field
    given = dataclasses.replace(config, seed=1)
    assert config_digest(given) != known


def test_every_other_value_is_in_it():
    config = tiny_config()
    model = dataclasses.replace(config.model, norm_eps=1e-5)
    moe = dataclasses.replace(config.moe, pool=dataclasses.replace(config.moe.pool, eval_size=4))
    changed = [
        dataclasses.replace(config, model=model),
        dataclasses.replace(config, moe=moe),
        dataclasses.replace(config, moe=None, model=dataclasses.replace(model, mlp_dim=8)),
    ]
    found = {config_digest(one) for one in (config, *changed)}
    assert len(found) == 4

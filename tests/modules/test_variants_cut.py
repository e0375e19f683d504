"""A model of any router variant can be cut and finetuned: what only training has is left out."""

import numpy as np
import pytest
from variants import SIGMOID, UNIFORM, VARIANTS, variant_config

from emo_jax.data.pairs import Packed
from emo_jax.modules.assemble import same_shape, smaller_config
from emo_jax.modules.finetune import FinetuneSettings, recipe

MORE = {
    "detached ghosts": dict(pool=UNIFORM, ghosts="usage", ghost_detach=True),
    "extension": dict(pool=UNIFORM, extension_experts=7, extension_detach_router=True),
    "quantile of many": dict(SIGMOID, score_bias="quantile", top_k=7),
}


@pytest.mark.parametrize("variant", [*VARIANTS, *MORE])
def test_a_smaller_model_has_a_config(variant):
    config = variant_config(MORE.get(variant, variant))
    picks = config.moe.num_routed_picks
    for routed in ([1, 1], [picks, picks], [1, config.moe.num_routed_experts]):
        smaller = smaller_config(config, routed)
        assert smaller.moe.pool.kind == smaller.moe.ghosts == "none"
        assert smaller.moe.extension_experts == 0
        # The bias is a parameter, which experts take along and nothing moves any more.
        assert (smaller.moe.score_bias == "none") == (config.moe.score_bias == "none")
        assert smaller.moe.bias_rate == 0
        assert same_shape(config, smaller) == []


@pytest.mark.parametrize("variant", [*VARIANTS, *MORE])
def test_a_finetuning_run_has_a_config(variant, tmp_path):
    config = variant_config(MORE.get(variant, variant))
    ones = np.ones((4, 32), np.int32)
    packed = Packed(ones, ones, ones.astype(np.float32), 8, [], [])
    made = recipe(config, packed, tmp_path, FinetuneSettings(balance_weight=0.02)).moe
    assert made.pool.kind == made.ghosts == "none" and made.load_balance_weight == 0.02
    assert made.shared_balance_weight == (0.02 if variant == "shared" else 0)

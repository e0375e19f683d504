"""Text from a model, one token at a time."""

import jax.numpy as jnp
import numpy as np
from tiny import UNIFORM, tiny_config

from emo_jax.batch import from_documents
from emo_jax.model.generate import continue_tokens
from emo_jax.model.transformer import ModelFunctions

PROMPT = [3, 1, 4, 1, 5]
NEVER = -1


def _model():
    """A model whose training pool must not matter, and parameters."""
    model = ModelFunctions(tiny_config(pool=UNIFORM))
    return model, model.init(0)


def _made(temperature=0.0, eos_id=NEVER, seed=0, num_tokens=6):
    return continue_tokens(
        *_model(),
        PROMPT,
        num_tokens=num_tokens,
        eos_id=eos_id,
        temperature=temperature,
        seed=seed,
    )


def test_greedy_takes_the_likeliest_token_of_what_is_there_so_far():
    model, params = _model()
    tokens = list(PROMPT)
    for _ in range(6):
        batch = from_documents(np.array([tokens]), np.zeros((1, len(tokens))))
        logits_SV = model.logits(params, batch)[0]
        tokens.append(int(jnp.argmax(logits_SV[-1])))
    assert _made() == tokens[len(PROMPT) :]
    assert len(set(tokens[len(PROMPT) :])) > 1


def test_ends_before_the_end_of_document():
    made = _made(temperature=1.0)
    eos_id = made[3]
    assert _made(temperature=1.0, eos_id=eos_id) == made[: made.index(eos_id)]
    assert _made(num_tokens=0) == []


def test_a_seed_is_a_text():
    made = [_made(temperature=1.0, seed=seed, num_tokens=10) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert all(0 <= token < 50 for token in made[0] + made[2])
    assert _made(seed=0) == _made(seed=1)

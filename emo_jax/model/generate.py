"""Text from a model, one token at a time, without a pool."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.batch import from_documents
from emo_jax.model.transformer import ModelFunctions, Params


def continue_tokens(
    model: ModelFunctions,
    params: Params,
    prompt: Sequence[int],
    *,
    num_tokens: int,
    eos_id: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[int]:
    """Up to `num_tokens` ids after the prompt; ends before `eos_id`.

    The whole window is computed again for every token: for a line, not for a service.

    Args:
      temperature: 0 takes the likeliest token.
    """
    tokens = np.zeros((1, len(prompt) + num_tokens), np.int32)
    tokens[0, : len(prompt)] = prompt

    @jax.jit
    def next_token(params: Params, tokens: jax.Array, last: jax.Array) -> jax.Array:
        batch = from_documents_on_device(tokens)
        logits_V = model.logits(params, batch)[0, last]
        if temperature <= 0:
            return jnp.argmax(logits_V)
        key = jax.random.fold_in(jax.random.key(seed), last)
        return jax.random.categorical(key, logits_V / temperature)

    def from_documents_on_device(tokens: jax.Array):
        batch = from_documents(np.zeros(tokens.shape), np.zeros(tokens.shape))
        return batch._replace(tokens=tokens)

    made: list[int] = []
    for last in range(len(prompt) - 1, len(prompt) + num_tokens - 1):
        token = int(next_token(params, jnp.asarray(tokens), jnp.asarray(last)))
        if token == eos_id:
            break
        made.append(token)
        tokens[0, last + 1] = token
    return made

"""The chunked vocabulary loss against the plain one, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emo_jax.model.vocab_loss import vocab_loss

B, S, D, V = 3, 24, 8, 20


@pytest.mark.parametrize("chunk", [1, 7, 8, 24, 100])
@pytest.mark.parametrize("vocab_size", [20, 17])
def test_chunked_loss_equals_the_plain_one(chunk, vocab_size):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, vocab_size, (B, S)), jnp.int32)
    mask = jnp.asarray(rng.random((B, S)) < 0.7, jnp.float32)
    labels = jnp.where(mask > 0, labels, -100)
    z_weight = 0.03

    def plain(hidden, kernel):
        logits = (hidden @ kernel)[..., :vocab_size]
        lse = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        ce, z = ((lse - picked) * mask), (lse**2 * mask)
        return 0.5 * (ce.sum() + z_weight * z.sum()), (ce, z.sum())

    def ours(hidden, kernel):
        loss, parts = vocab_loss(hidden, kernel, labels, mask, vocab_size, z_weight, chunk)
        return 0.5 * loss, parts

    (loss, parts), grads = jax.value_and_grad(ours, (0, 1), has_aux=True)(hidden, kernel)
    (ref, (ref_ce, ref_z)), ref_grads = jax.value_and_grad(plain, (0, 1), has_aux=True)(
        hidden, kernel
    )
    np.testing.assert_allclose(loss, ref, rtol=1e-6)
    np.testing.assert_allclose(parts.ce_BS, ref_ce, atol=1e-5)
    np.testing.assert_allclose(parts.ce_sum, ref_ce.sum(), rtol=1e-6)
    np.testing.assert_allclose(parts.z_sum, ref_z, rtol=1e-6)
    for a, b in zip(grads, ref_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not np.asarray(grads[1])[:, vocab_size:].any()
    # Without a gradient the same value comes out.
    np.testing.assert_allclose(ours(hidden, kernel)[0], ref, rtol=1e-6)

"""What logits of an exported folder are held against: NumPy in float64, and our own model."""

import numpy as np

from emo_jax.files.trees import flatten

TOLERANCE = 1e-4


def our_logits(params, config, tokens):
    """Of our own model, one document a row: attention inside a document is then plain causal."""
    from emo_jax.batch import from_documents
    from emo_jax.model.functions import ModelFunctions

    batch = from_documents(tokens, np.zeros_like(tokens))
    logits = np.asarray(ModelFunctions(config).logits(params, batch))
    return logits[..., : config.model.vocab_size]


def forward(params, config, tokens):
    """SPEC 1.2 and 2.5 in NumPy float64: no pool, plain causal attention. (B,S) → (B,S,V)."""
    leaves = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(params).items()}
    model, moe = config.model, config.moe
    S, Dh = tokens.shape[1], model.head_dim

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_eps) * scale

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def rotate(x):  # (B,S,H,Dh), dims i and i + Dh/2 are a pair
        angles = np.arange(S)[:, None] * model.rope_theta ** (-np.arange(0, Dh, 2) / Dh)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., : Dh // 2], x[..., Dh // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def swiglu(x, path, *index, stack="layers"):
        gate, up, down = (leaves[f"{stack}/mlp/{path}{n}"][index] for n in ("gate", "up", "down"))
        hidden = x @ gate
        return (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down

    def mixture(h, layer):
        R = moe.num_routed_experts
        probs = softmax(h @ leaves["layers/mlp/router/kernel"][layer][:, :R])
        kept = np.sort(probs, axis=-1)[..., -moe.num_routed_picks][..., None]
        combine = np.where(probs >= kept, probs, 0.0)
        if moe.normalize_picks:
            combine /= combine.sum(-1, keepdims=True)
        y = sum(combine[..., e, None] * swiglu(h, "experts/", layer, e) for e in range(R))
        return y + sum(swiglu(h, "experts/", layer, e) for e in range(R, moe.num_experts))

    x = leaves["embed/embedding"][tokens]
    causal = np.tril(np.ones((S, S), bool))
    first = model.dense_layers
    for i in range(model.num_layers):
        stack, layer = ("dense_layers", i) if i < first else ("layers", i - first)
        h = norm(x, leaves[f"{stack}/attention_norm/scale"][layer])
        q, k, v = (
            np.einsum("bsd,dhk->bshk", h, leaves[f"{stack}/attention/{name}"][layer])
            for name in ("query", "key", "value")
        )
        group = q.shape[2] // k.shape[2]  # heads of queries that read one head of keys
        k, v = (np.repeat(a, group, axis=2) for a in (k, v))
        scores = np.einsum("bqhk,bshk->bhqs", rotate(q), rotate(k)) / np.sqrt(Dh)
        weights = softmax(np.where(causal, scores, -np.inf))
        out = np.einsum("bhqs,bshk->bqhk", weights, v)
        x = x + np.einsum("bqhk,hkd->bqd", out, leaves[f"{stack}/attention/out"][layer])

        h = norm(x, leaves[f"{stack}/mlp_norm/scale"][layer])
        dense = moe is None or stack == "dense_layers"
        x = x + (swiglu(h, "", layer, stack=stack) if dense else mixture(h, layer))
    logits = norm(x, leaves["final_norm/scale"]) @ leaves["lm_head/kernel"]
    return logits[..., : model.vocab_size]


def compare(name, got, expected):
    worst = float(np.abs(got - expected).max())
    print(
        f"{name}: largest logit difference {worst:.2e}, logits up to {np.abs(expected).max():.1f}"
    )
    assert got.shape == expected.shape
    assert worst < TOLERANCE

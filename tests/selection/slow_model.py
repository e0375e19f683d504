"""The model and the methods of SPEC 7.2, transcribed in NumPy: a loop for everything, float64.

One document at a time, as the reference does; parameters are a nested dict of ours.
"""

import numpy as np


def _norm(x_SD, scale_D, eps):
    return x_SD / np.sqrt((x_SD**2).mean(-1, keepdims=True) + eps) * scale_D


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _rotary(x_SHh, theta):
    S, _, h = x_SHh.shape
    angle_Sj = np.arange(S)[:, None] * theta ** (-np.arange(0, h, 2) / h)
    cos, sin = np.cos(angle_Sj)[:, None], np.sin(angle_Sj)[:, None]
    a, b = x_SHh[..., : h // 2], x_SHh[..., h // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _silu(x):
    return x / (1 + np.exp(-x))


class SlowModel:
    """Forward passes of one document, layer by layer."""

    def __init__(self, config, params):
        self.config = config
        self.params = params
        self.eps = config.model.norm_eps

    def _layer(self, *names, number):
        leaf = self.params["layers"]
        for name in names:
            leaf = leaf[name]
        return np.asarray(leaf[number], np.float64)

    def embed(self, tokens_S):
        return np.asarray(self.params["embed"]["embedding"], np.float64)[tokens_S]

    def attend(self, n, x_SD):
        h_SD = _norm(x_SD, self._layer("attention_norm", "scale", number=n), self.eps)
        q, k, v = (
            np.einsum("sd,dhk->shk", h_SD, self._layer("attention", name, number=n))
            for name in ("query", "key", "value")
        )
        theta, size = self.config.model.rope_theta, q.shape[-1]
        q, k = _rotary(q, theta), _rotary(k, theta)
        scores_HST = np.einsum("shk,thk->hst", q, k) / np.sqrt(size)
        S = len(x_SD)
        scores_HST = np.where(np.tri(S, dtype=bool), scores_HST, -np.inf)
        mixed = np.einsum("hst,thk->shk", _softmax(scores_HST), v)
        return x_SD + np.einsum("shk,hkd->sd", mixed, self._layer("attention", "out", number=n))

    def normed(self, n, x_SD):
        return _norm(x_SD, self._layer("mlp_norm", "scale", number=n), self.eps)

    def expert(self, n, e, h_D):
        gate, up, down = (
            self._layer("mlp", "experts", name, number=n)[e] for name in ("gate", "up", "down")
        )
        return (_silu(h_D @ gate) * (h_D @ up)) @ down

    def probs(self, n, h_SD, kept):
        """Softmax over the routed experts in `kept`."""
        logits = h_SD @ self._layer("mlp", "router", "kernel", number=n)[:, kept]
        return _softmax(logits)

    def mlp(self, n, h_SD, kept):
        """Output of the mixture of experts, and (token, expert, weight, output) of every pick."""
        moe = self.config.moe
        R, s = moe.num_routed_experts, moe.num_shared_experts
        probs = self.probs(n, h_SD, kept)
        out, picks = np.zeros_like(h_SD), []
        for t, h_D in enumerate(h_SD):
            order = np.argsort(-probs[t], kind="stable")[: min(moe.num_routed_picks, len(kept))]
            for place in order:
                y_D = self.expert(n, kept[place], h_D)
                out[t] += probs[t, place] * y_D
                picks.append((t, kept[place], probs[t, place], y_D))
            for e in range(R, R + s):
                out[t] += self.expert(n, e, h_D)
        return out, picks


def layerwise(config, params, documents, routed_L):
    """The reference's loop: for each layer the model from the start, earlier layers pruned."""
    slow, R = SlowModel(config, params), config.moe.num_routed_experts
    kept_L, scores_L = [], []
    for layer in range(config.model.num_layers):
        sums = np.zeros(R)
        for tokens_S in documents:
            x = slow.embed(tokens_S)
            for n in range(layer):
                x = slow.attend(n, x)
                x = x + slow.mlp(n, slow.normed(n, x), kept_L[n])[0]
            x = slow.attend(layer, x)
            sums += slow.probs(layer, slow.normed(layer, x), list(range(R))).sum(0)
        scores_L.append(sums)
        kept_L.append(sorted(np.argsort(-sums, kind="stable")[: routed_L[layer]]))
    return kept_L, scores_L


def easy_ep(config, params, documents, routed_L):
    """One pass of the whole model."""
    slow, R, L = SlowModel(config, params), config.moe.num_routed_experts, config.model.num_layers
    scores = np.zeros((L, R))
    for tokens_S in documents:
        x = slow.embed(tokens_S)
        for n in range(L):
            x = slow.attend(n, x)
            h = slow.normed(n, x)
            out, picks = slow.mlp(n, h, list(range(R)))
            for t, e, weight, y_D in picks:
                a, b = h[t], h[t] + out[t]
                moved = max(0.0, 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
                scores[n, e] += weight * np.linalg.norm(y_D) * moved
            x = x + out
    kept = [sorted(np.argsort(-scores[n], kind="stable")[: routed_L[n]]) for n in range(L)]
    return kept, scores


def reap(config, params, documents, routed_L):
    """Router-weighted expert activation pruning: a mean over the tokens that use an expert."""
    slow, R, L = SlowModel(config, params), config.moe.num_routed_experts, config.model.num_layers
    worths = [[[] for _ in range(R)] for _ in range(L)]
    for tokens_S in documents:
        x = slow.embed(tokens_S)
        for n in range(L):
            x = slow.attend(n, x)
            out, picks = slow.mlp(n, slow.normed(n, x), list(range(R)))
            for _, e, weight, y_D in picks:
                worths[n][e].append(weight * np.linalg.norm(y_D))
            x = x + out
    scores = np.array([[np.mean(of_e) if of_e else 0.0 for of_e in of_n] for of_n in worths])
    kept = [sorted(np.argsort(-scores[n], kind="stable")[: routed_L[n]]) for n in range(L)]
    return kept, scores


def aimer(config, params, documents, routed_L):
    """Mean of the absolute weights over their root mean square; the smallest are kept."""
    slow, R, L = SlowModel(config, params), config.moe.num_routed_experts, config.model.num_layers
    scores = np.zeros((L, R))
    for n in range(L):
        for e in range(R):
            weights = np.concatenate(
                [
                    slow._layer("mlp", "experts", name, number=n)[e].ravel()
                    for name in ("gate", "up", "down")
                ]
            )
            scores[n, e] = -np.abs(weights).mean() / np.sqrt((weights**2).mean())
    kept = [sorted(np.argsort(-scores[n], kind="stable")[: routed_L[n]]) for n in range(L)]
    return kept, scores

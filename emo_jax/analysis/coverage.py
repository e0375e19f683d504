"""How domains spread over experts (SPEC 8.5).

Legend: N tokens, D documents, M domains, L layers, R routed experts, K routed picks.
"""

from typing import NamedTuple

import numpy as np

from emo_jax.analysis.activations import Activations


class Coverage(NamedTuple):
    """Expert use by domain and layer.

    Attributes:
      use_LMR: mean router probability over a domain's tokens; sums to 1.
      picked_LMR: share of a domain's tokens that pick an expert; sums to K.
      load_LR: share of all picks; sums to 1.
      together_LRR: share of tokens that pick both experts; on the diagonal, that pick the one.
      tokens_M: tokens of each domain.
      experts_L: routed experts that each layer has; numbers of experts it lacks are 0.
    """

    use_LMR: np.ndarray
    picked_LMR: np.ndarray
    load_LR: np.ndarray
    together_LRR: np.ndarray
    tokens_M: np.ndarray
    experts_L: np.ndarray

    @property
    def experts_LM(self) -> np.ndarray:
        """Number of experts with more than an even share of the probability."""
        return (self.use_LMR > 1.0 / self.experts_L[:, None, None]).sum(axis=-1)

    @property
    def entropy_LM(self) -> np.ndarray:
        """Entropy of `use_LMR` in bits; at most log2 R."""
        p = self.use_LMR
        return -np.where(p > 0, p * np.log2(np.maximum(p, 1e-30)), 0.0).sum(axis=-1)

    @property
    def similarity_LMM(self) -> np.ndarray:
        """Cosine similarity of the expert use of two domains."""
        unit = self.use_LMR / np.maximum(
            np.linalg.norm(self.use_LMR, axis=-1, keepdims=True), 1e-30
        )
        return np.einsum("lmr,lnr->lmn", unit, unit)

    @property
    def distance_LMM(self) -> np.ndarray:
        """Euclidean distance between the expert use of two domains."""
        apart = self.use_LMR[:, :, None] - self.use_LMR[:, None]
        return np.linalg.norm(apart, axis=-1)

    @property
    def companions_LRR(self) -> np.ndarray:
        """How often two experts are picked together, relative to chance; 0 on the diagonal."""
        alone_LR = np.diagonal(self.together_LRR, axis1=1, axis2=2)
        expected = alone_LR[:, :, None] * alone_LR[:, None]
        lift = np.where(expected > 0, self.together_LRR / np.maximum(expected, 1e-30), 0.0)
        lift[:, np.arange(lift.shape[1]), np.arange(lift.shape[1])] = 0.0
        return lift


def coverage(found: Activations) -> Coverage:
    """Computes coverage in one pass over the activations."""
    L, R, K = found.num_layers, found.num_routed, found.num_picks
    M, domains_N = len(found.domains), found.domains_N
    use = np.zeros((M, L, R))
    picked = np.zeros((M, L, R))
    together = np.zeros((L, R, R))
    for where, probs_nLR in found.pieces():
        picked_nLR = np.zeros(probs_nLR.shape, np.float32)
        np.put_along_axis(picked_nLR, found.picks(where), 1.0, axis=-1)
        for m in np.unique(domains_N[where]).tolist():
            mine = domains_N[where] == m
            use[m] += probs_nLR[mine].sum(axis=0, dtype=np.float64)
            picked[m] += picked_nLR[mine].sum(axis=0, dtype=np.float64)
        for layer in range(L):
            together[layer] += picked_nLR[:, layer].T @ picked_nLR[:, layer]
    tokens_M = np.bincount(domains_N, minlength=M)
    by_token = np.maximum(tokens_M, 1)[:, None, None]
    load_LR = picked.sum(axis=0) / max(K * tokens_M.sum(), 1)
    return Coverage(
        use_LMR=np.moveaxis(use / by_token, 0, 1),
        picked_LMR=np.moveaxis(picked / by_token, 0, 1),
        load_LR=load_LR,
        together_LRR=together / max(tokens_M.sum(), 1),
        tokens_M=tokens_M,
        experts_L=np.array(found.experts_L),
    )

"""Clusters of tokens or documents that use the same experts (SPEC 8).

The router probabilities of all layers are concatenated, centred, reduced to the components that
explain 95 % of the variance, and scaled to length 1; then clustered by spherical k-means. Scores
tell what the clusters are about, by the domains (topics) and the token types (words) in them.

Legend: N rows (tokens or documents), F = L·R features, P components, C clusters, M domains.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score, silhouette_score

from emo_jax.analysis.activations import Activations
from emo_jax.errors import UsageError

# SPEC 8.3, except for the rows that the components and first centres are fitted on.
VARIANCE = 0.95
ROUNDS, TOLERANCE = 20, 1e-6  # for the refinement rounds
SILHOUETTE_ROWS = 10_000
FIT_ROWS = 100_000


class Clusters(NamedTuple):
    """Clusters, and how well they fit.

    Attributes:
      ids_N: int32.
      closeness_N: cosine of a row with its centre, float32.
      centres_CP: of length 1, float32.
      components: P.
      rounds: number of refinement rounds.
    """

    ids_N: np.ndarray
    closeness_N: np.ndarray
    centres_CP: np.ndarray
    components: int
    rounds: int

    @property
    def number(self) -> int:
        """Number of clusters, C."""
        return len(self.centres_CP)


class Features(NamedTuple):
    """Rows to cluster: N of them, read piece by piece."""

    rows: int
    pieces: Callable[[], Iterable[tuple[slice, np.ndarray]]]  # (where, (n,F) float32)


def token_features(found: Activations, layer: int | None = None) -> Features:
    """Returns each token's router probabilities, in one layer or in all."""
    chosen = _layers(found.num_layers, layer)

    def pieces() -> Iterator[tuple[slice, np.ndarray]]:
        for where, probs_nLR in found.pieces():
            yield where, probs_nLR[:, chosen].reshape(len(probs_nLR), -1)

    return Features(found.num_tokens, pieces)


def document_features(means_DLR: np.ndarray, layer: int | None = None) -> Features:
    """Returns each document's mean router probabilities, in one layer or in all."""
    means_DF = means_DLR[:, _layers(means_DLR.shape[1], layer)].reshape(len(means_DLR), -1)
    return Features(len(means_DF), lambda: [(slice(0, len(means_DF)), means_DF)])


def document_means(found: Activations) -> np.ndarray:
    """Returns each document's mean router probabilities, (D,L,R) float32."""
    D = len(found.doc_ends_D)
    sums = np.zeros((D, found.num_layers, found.num_routed), np.float64)
    documents_N = found.documents_N
    for where, probs_nLR in found.pieces():
        ids, starts = np.unique(documents_N[where], return_index=True)  # in order: runs of tokens
        sums[ids] += np.add.reduceat(probs_nLR, starts, axis=0, dtype=np.float64)
    return (sums / np.diff(found.doc_ends_D, prepend=0)[:, None, None]).astype(np.float32)


def _layers(num_layers: int, layer: int | None) -> slice:
    if layer is None:
        return slice(None)
    if not 0 <= layer < num_layers:
        raise UsageError(f"--layer {layer}: the model has layers 0..{num_layers - 1} with experts")
    return slice(layer, layer + 1)


def reduced(features: Features, seed: int = 0) -> np.ndarray:
    """Returns rows (N,P) float32 of length 1: centred, with components for 95 % of the variance.

    The components are fitted on at most `FIT_ROWS` rows, drawn with the seed.
    """
    N = features.rows
    if N == 1:  # no variance
        return np.ones((1, 1), np.float32)
    fit_on = np.sort(np.random.default_rng(seed).permutation(N)[:FIT_ROWS])
    drawn = []
    for where, rows in features.pieces():
        first, last = np.searchsorted(fit_on, [where.start, where.stop])
        drawn.append(rows[fit_on[first:last] - where.start])
    # All components are needed to know how many explain that much.
    pca = PCA(svd_solver="covariance_eigh").fit(np.concatenate(drawn))
    held = np.cumsum(pca.explained_variance_ratio_)
    P = int(np.searchsorted(held, VARIANCE) + 1) if np.isfinite(held[-1]) else 1
    P = min(P, len(pca.components_))
    out = np.empty((N, P), np.float32)
    for where, rows in features.pieces():
        part = (rows - pca.mean_) @ pca.components_[:P].T
        out[where] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return out


def spherical_kmeans(rows_NP: np.ndarray, count: int, seed: int = 0) -> Clusters:
    """Clusters rows of length 1 by cosine.

    The first centres come from scikit-learn's mini-batch k-means on at most `FIT_ROWS` rows; at
    most 20 rounds over all rows follow.

    Raises:
      UsageError: more clusters than rows.
    """
    N = len(rows_NP)
    check_count(count, N)
    drawn = rows_NP[np.random.default_rng(seed).permutation(N)[:FIT_ROWS]]
    state: Any = seed  # scikit-learn takes 32 bits
    if seed >= 2**32:
        state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    first = MiniBatchKMeans(count, n_init=10, max_iter=500, batch_size=4096, random_state=state)
    centres_CP = _unit(first.fit(drawn).cluster_centers_.astype(np.float32))
    rounds = 0
    ids_N, close_N, sums_CP = _assigned(rows_NP, centres_CP)
    while rounds < ROUNDS:
        rounds += 1
        moved_CP = _unit(sums_CP).astype(np.float32)
        # A cluster without rows restarts at one of the rows that fit their own cluster least.
        empty = np.flatnonzero(np.bincount(ids_N, minlength=count) == 0)
        moved_CP[empty] = rows_NP[np.argsort(close_N, kind="stable")[: len(empty)]]
        shift = float(np.abs(moved_CP - centres_CP).max())
        centres_CP = moved_CP
        ids_N, close_N, sums_CP = _assigned(rows_NP, centres_CP)
        if shift <= TOLERANCE:
            break
    return Clusters(ids_N, close_N, centres_CP, rows_NP.shape[1], rounds)


def check_count(count: int, rows: int) -> None:
    """Raises UsageError for more clusters than rows."""
    if not 1 <= count <= rows:
        raise UsageError(f"--clusters {count}: must be 1..{rows}, the number of rows")


def _assigned(rows_NP: np.ndarray, centres_CP: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns each row's nearest centre, its cosine with it, and the sum of each centre's rows."""
    N, C = len(rows_NP), len(centres_CP)
    ids_N, close_N = np.empty(N, np.int32), np.empty(N, np.float32)
    sums_CP = np.zeros(centres_CP.shape, np.float64)
    for start in range(0, N, 65536):
        part = rows_NP[start : start + 65536]
        cosines = part @ centres_CP.T
        ids = cosines.argmax(axis=1)
        ids_N[start : start + len(part)] = ids
        close_N[start : start + len(part)] = cosines[np.arange(len(part)), ids]
        sums_CP += np.eye(C, dtype=np.float32)[ids].T @ part
    return ids_N, close_N, sums_CP


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


class Scores(NamedTuple):
    """What clusters are about; NaN where that is undefined.

    Attributes:
      silhouette: over at most 10 000 rows, by cosine.
      purity: share of rows that belong to their cluster's most frequent domain.
      nmi: normalised mutual information with the domains. It and purity need two domains.
      token_entropy: bits, entropy of the token types in a cluster, averaged over tokens. Few bits
        mean words rather than topics.
      token_nmi: normalised mutual information with the token types; NaN for documents.
    """

    silhouette: float
    purity: float
    nmi: float
    token_entropy: float
    token_nmi: float


def scores(
    clusters: Clusters,
    rows_NP: np.ndarray,
    domains_N: np.ndarray,
    tokens: tuple[np.ndarray, np.ndarray],
    seed: int = 0,
) -> Scores:
    """Scores how good clusters are, and what they are about.

    Args:
      domains_N: domain of each row.
      tokens: token types, and the row that each token belongs to.
    """
    ids_N = clusters.ids_N
    nan = float("nan")
    drawn = np.random.default_rng(seed).permutation(len(ids_N))[:SILHOUETTE_ROWS]
    groups = len(np.unique(ids_N[drawn]))
    silhouette = nan
    if 1 < groups < len(drawn):
        silhouette = float(silhouette_score(rows_NP[drawn], ids_N[drawn], metric="cosine"))
    purity = nmi = nan
    if len(np.unique(domains_N)) > 1:  # with one domain there is nothing to distinguish
        table = contingency(ids_N, domains_N, clusters.number, int(domains_N.max()) + 1)
        purity = float(table.max(axis=1).sum() / table.sum())
        nmi = float(normalized_mutual_info_score(domains_N, ids_N))
    types, row_of = tokens
    groups_of_tokens = ids_N[row_of]
    is_token = len(types) == len(ids_N)
    return Scores(
        silhouette,
        purity,
        nmi,
        _type_entropy(groups_of_tokens, types),
        float(normalized_mutual_info_score(types, ids_N)) if is_token else nan,
    )


class Grouped(NamedTuple):
    """Clusters of tokens or documents, and what they are about."""

    clusters: Clusters
    scores: Scores


def groups_of(found: Activations, made: Clusters, documents: bool) -> list[dict[str, Any]]:
    """Returns the size, tokens by domain and entropy of token types (bits) of each cluster."""
    groups_N = made.ids_N[found.documents_N] if documents else made.ids_N
    C, M = made.number, len(found.domains)
    tokens_CM = contingency(groups_N, found.domains_N, C, M)
    sizes_C = np.bincount(made.ids_N, minlength=C)
    return [
        {
            "size": int(sizes_C[c]),
            "tokens": dict(zip(found.domains, tokens_CM[c].tolist(), strict=True)),
            "type_bits": round(entropy_of_types(found.tokens_N[groups_N == c]), 4),
        }
        for c in range(C)
    ]


def group_tokens(
    found: Activations, count: int, *, layer: int | None = None, seed: int = 0
) -> Grouped:
    """Clusters tokens, by one layer or by all."""
    rows_NP = reduced(token_features(found, layer), seed)
    made = spherical_kmeans(rows_NP, count, seed)
    types = (found.tokens_N, np.arange(found.num_tokens))
    return Grouped(made, scores(made, rows_NP, found.domains_N, types, seed))


def group_documents(
    found: Activations,
    means_DLR: np.ndarray,
    count: int,
    *,
    layer: int | None = None,
    seed: int = 0,
) -> Grouped:
    """Clusters documents, by one layer or by all, into no more clusters than documents.

    Args:
      means_DLR: from `document_means`.
    """
    rows_DP = reduced(document_features(means_DLR, layer), seed)
    made = spherical_kmeans(rows_DP, min(count, len(rows_DP)), seed)
    types = (found.tokens_N, found.documents_N)
    return Grouped(made, scores(made, rows_DP, found.doc_domains_D, types, seed))


def numbers(scores: Scores) -> dict[str, float | None]:
    """Returns the scores by name, with null for NaN, which JSON does not have."""
    return {
        name: None if math.isnan(value) else round(value, 4)
        for name, value in scores._asdict().items()
    }


def contingency(groups: np.ndarray, labels: np.ndarray, C: int, M: int) -> np.ndarray:
    """Returns counts (C,M) of labels 0..M-1 in groups 0..C-1."""
    return np.bincount(groups.astype(np.int64) * M + labels, minlength=C * M).reshape(C, M)


def entropy_of_types(types: np.ndarray) -> float:
    """Returns the entropy, in bits, of the frequencies of token types."""
    _, counts = np.unique(types, return_counts=True)
    shares = counts / max(counts.sum(), 1)
    return float(-(shares * np.log2(shares)).sum())


def _type_entropy(groups: np.ndarray, types: np.ndarray) -> float:
    """Returns `entropy_of_types` averaged over groups, weighted by their tokens."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    parts = np.split(types[order], np.cumsum(sizes)[:-1])
    return float(sum(len(p) * entropy_of_types(p) for p in parts if len(p)) / max(len(types), 1))

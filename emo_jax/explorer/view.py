"""What the page shows of one model, from its activations: first numbers, then the page's JSON.

Legend: N tokens, D documents, M domains, T token texts, L layers, R routed experts, K routed picks,
C clusters.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emo_jax.analysis import cluster
from emo_jax.analysis.activations import Activations
from emo_jax.analysis.coverage import Coverage, coverage
from emo_jax.analysis.texts import TokenTexts, standing_out

DOCUMENTS, TEXTS, COMPANIONS, EXPERTS = 8, 12, 5, 8  # entries on a card, at most
LABEL_TEXTS = 3


class View(NamedTuple):
    """All values of one model that need a pass over the activations."""

    found: Activations
    coverage: Coverage
    picks_NLK: np.ndarray  # uint8 or uint16, largest probability first
    probs_NLK: np.ndarray  # uint8: 255 times their probability
    tokens: cluster.Grouped
    documents: cluster.Grouped
    cluster_means_CLR: np.ndarray  # means of the token clusters
    document_means_DLR: np.ndarray


def look(
    found: Activations,
    *,
    token_clusters: int,
    document_clusters: int,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> View:
    """Makes all passes over a model's activations."""
    progress("experts by domain")
    covered = coverage(found)
    progress("token clusters")
    tokens = cluster.group_tokens(found, token_clusters, seed=seed)
    progress("document clusters")
    means_DLR = cluster.document_means(found)
    documents = cluster.group_documents(found, means_DLR, document_clusters, seed=seed)
    progress("picks")
    small = np.uint8 if found.num_routed <= 256 else np.uint16
    shape = (found.num_tokens, found.num_layers, found.num_picks)
    picks_NLK, probs_NLK = np.empty(shape, small), np.empty(shape, np.uint8)
    sums = np.zeros((tokens.clusters.number, found.num_layers, found.num_routed))
    for where, probs_nLR in found.pieces():
        chosen = found.picks(where)
        picks_NLK[where] = chosen
        probs_NLK[where] = np.rint(255 * np.take_along_axis(probs_nLR, chosen, -1))
        ids = tokens.clusters.ids_N[where]
        for c in np.unique(ids).tolist():
            sums[c] += probs_nLR[ids == c].sum(axis=0, dtype=np.float64)
    sizes_C = np.bincount(tokens.clusters.ids_N, minlength=tokens.clusters.number)
    means_CLR = sums / np.maximum(sizes_C, 1)[:, None, None]
    return View(
        *(found, covered, picks_NLK, probs_NLK, tokens, documents, means_CLR, means_DLR),
    )


def to_json(view: View, texts: TokenTexts, without: list | None, keep: dict | None) -> dict:
    """Returns the page's part about a model (fields: see docs/explorer.md).

    Args:
      without: for each layer and expert, how much domains' losses rise without it, by name; or
        None.
      keep: losses with part of the experts, or None.
    """
    found, covered = view.found, view.coverage
    types_N = texts.index_N
    all_T = np.bincount(types_N, minlength=len(texts.texts))
    sizes_D = np.diff(found.doc_ends_D, prepend=0)
    return {
        **found.about,
        "path": Path(found.about.get("path", "")).name,  # the page may be shared with others
        "layers": found.num_layers,
        "routed": found.num_routed,
        "top_k": found.num_picks,
        "use": _short(covered.use_LMR),
        "picked": _short(covered.picked_LMR),
        "load": _short(covered.load_LR),
        "domain_entropy": _short(covered.entropy_LM, 3),
        "domain_experts": covered.experts_LM.tolist(),
        "similarity": _short(covered.similarity_LMM, 3),
        "experts": [
            _cards_of_layer(view, layer, types_N, all_T, sizes_D, without and without[layer])
            for layer in range(found.num_layers)
        ],
        "token_clusters": _token_clusters(view, texts, all_T, sizes_D),
        "document_clusters": _document_clusters(view, texts, all_T),
        "keep": keep,
    }


def _short(values: np.ndarray, digits: int = 5) -> list:
    return np.round(np.asarray(values, np.float64), digits).tolist()


def _cards_of_layer(
    view: View,
    layer: int,
    types_N: np.ndarray,
    all_T: np.ndarray,
    sizes_D: np.ndarray,
    without: list | None,
) -> list[dict[str, Any]]:
    found, R, T, D = view.found, view.found.num_routed, len(all_T), len(sizes_D)
    counts_DR = np.zeros((D, R))
    counts_RT = np.zeros((R, T), np.int32)
    for k in range(found.num_picks):
        chosen_N = view.picks_NLK[:, layer, k].astype(np.int64)
        counts_DR += np.bincount(found.documents_N * R + chosen_N, minlength=D * R).reshape(D, R)
        counts_RT += np.bincount(chosen_N * T + types_N, minlength=R * T).reshape(R, T)
    share_DR = counts_DR / sizes_D[:, None]
    lift_RR = view.coverage.companions_LRR[layer]
    return [
        {
            "documents": _largest(share_DR[:, e], DOCUMENTS),
            "tokens": _rounded(standing_out(counts_RT[e], all_T, TEXTS)),
            "companions": _largest(lift_RR[e], COMPANIONS, above=1.0),
            "without": without[e] if without else None,
        }
        for e in range(found.experts_L[layer])
    ]


def _largest(values: np.ndarray, most: int, above: float = 0.0) -> list[tuple[int, float]]:
    order = np.argsort(-values, kind="stable")[:most]
    return [(int(i), round(float(values[i]), 3)) for i in order if values[i] > above]


def _rounded(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(i, round(value, 2)) for i, value in pairs]


def _token_clusters(view: View, texts: TokenTexts, all_T: np.ndarray, sizes_D: np.ndarray) -> dict:
    found, ids_N = view.found, view.tokens.clusters.ids_N
    C, D = view.tokens.clusters.number, len(sizes_D)
    counts_CD = cluster.contingency(ids_N, found.documents_N, C, D)
    overall_LR = view.coverage.use_LMR.mean(axis=1)
    return _clusters(
        view.tokens,
        texts,
        all_T,
        groups_N=ids_N,
        domains=cluster.contingency(ids_N, found.domains_N, C, len(found.domains)),
        sizes_C=np.bincount(ids_N, minlength=C),
        documents=[_largest(counts_CD[c] / sizes_D, DOCUMENTS) for c in range(C)],
        experts=[_experts(view.cluster_means_CLR[c], overall_LR) for c in range(C)],
    )


def _document_clusters(view: View, texts: TokenTexts, all_T: np.ndarray) -> dict:
    found, made = view.found, view.documents.clusters
    ids_D, C = made.ids_N, made.number
    close_CD = np.where(ids_D == np.arange(C)[:, None], made.closeness_N, -1.0)
    overall_LR = view.document_means_DLR.mean(axis=0)
    return _clusters(
        view.documents,
        texts,
        all_T,
        groups_N=ids_D[found.documents_N],
        domains=cluster.contingency(ids_D, found.doc_domains_D, C, len(found.domains)),
        sizes_C=np.bincount(ids_D, minlength=C),
        documents=[_largest(close_CD[c], DOCUMENTS, above=-1.0) for c in range(C)],
        experts=[
            _experts(view.document_means_DLR[ids_D == c].mean(axis=0), overall_LR)
            if (ids_D == c).any()
            else []
            for c in range(C)
        ],
    )


def _clusters(
    grouped: cluster.Grouped,
    texts: TokenTexts,
    all_T: np.ndarray,
    *,
    groups_N: np.ndarray,
    domains: np.ndarray,
    sizes_C: np.ndarray,
    documents: list,
    experts: list,
) -> dict[str, Any]:
    made, types_N = [], texts.index_N
    for c in range(grouped.clusters.number):
        mine = types_N[groups_N == c]
        words = _rounded(standing_out(np.bincount(mine, minlength=len(all_T)), all_T, TEXTS))
        made.append(
            {
                "label": " · ".join(shown(texts.texts[t]) for t, _ in words[:LABEL_TEXTS]),
                "size": int(sizes_C[c]),
                "domains": domains[c].tolist(),
                "texts": words,
                "entropy": round(cluster.entropy_of_types(mine), 3) if len(mine) else 0.0,
                "documents": documents[c],
                "experts": experts[c],
            }
        )
    return {
        "count": grouped.clusters.number,
        "metrics": cluster.numbers(grouped.scores),
        "clusters": made,
    }


def shown(text: str) -> str:
    """Returns a text as part of a label: stripped of spaces; white space alone is named."""
    names = {" ": "space", "\n": "line end", "\t": "tab", "\n\n": "blank line"}
    return text.strip() or names.get(text, "white space" if text else "part of a character")


def _experts(means_LR: np.ndarray, overall_LR: np.ndarray) -> list[tuple[int, int, float]]:
    """Returns the experts most above their usual probability: (layer, expert, probability)."""
    above = (means_LR - overall_LR).ravel()
    R = means_LR.shape[1]
    order = np.argsort(-above, kind="stable")[:EXPERTS]
    return [
        (int(i) // R, int(i) % R, round(float(means_LR.ravel()[i]), 4))
        for i in order
        if above[i] > 0
    ]

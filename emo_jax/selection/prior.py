"""What a domain's routing is likely to be, so that one document can tell it.

The router probabilities of a single document are those of its domain plus what is its own. How
domains differ (between them) and how documents of one domain do (within) is estimated from the
documents of a store; the domain's routing, given some documents, is then the mean of a Gaussian
posterior, over all layers together: a document that routes like law in one layer is likely to in
the others. Empirical Bayes; with one dimension it is the shrinkage of Efron and Morris (1973).

A domain unlike those of the store must not be drawn to them. How far domains may lie from what the
store's allow, `reach`, is therefore the one under which the documents are likeliest (evidence,
MacKay 1992).

Legend: N documents, L layers, R routed experts, F = L·R, M domains.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from emo_jax.batch import BATCH_TOKENS
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.model.functions import ModelFunctions
from emo_jax.model.params import Params
from emo_jax.parallel import mesh as mesh_lib
from emo_jax.selection.examples import pack, shuffled_documents

REACHES = (0.1, 1.0, 10.0, 100.0, 1000.0)
MIN_TOKENS = 64  # of a document: shorter ones say more of their words than of their domain
MOST_DOCUMENTS = 64  # of a domain
_JITTER = 1e-9  # of the mean variance within domains


class RoutingPrior(NamedTuple):
    """Where domains' routing lies, and how documents scatter around it. All float64."""

    mean_F: np.ndarray  # the mean of the domains
    between_FF: np.ndarray  # covariance of the domains' means
    within_FF: np.ndarray  # covariance of the documents of a domain, mean over the domains


def prior_of(shares_NLR: np.ndarray, domains_N: np.ndarray) -> RoutingPrior:
    """The prior that some documents give; domains weigh the same, however many documents each has.

    Args:
      shares_NLR: mean router probabilities of each document.
      domains_N: int, the domain of each.

    Raises:
      UsageError: fewer than two domains with two documents.
    """
    x_NF = np.asarray(shares_NLR, np.float64).reshape(len(shares_NLR), -1)
    by_domain = [x_NF[domains_N == d] for d in np.unique(domains_N)]
    by_domain = [x for x in by_domain if len(x) > 1]
    if len(by_domain) < 2:
        raise UsageError("--prior: needs two domains with two documents each; give a larger store")
    means_MF = np.stack([x.mean(axis=0) for x in by_domain])
    away_MF = means_MF - means_MF.mean(axis=0)
    within_FF = np.zeros((x_NF.shape[1],) * 2)
    for x, mean_F in zip(by_domain, means_MF, strict=True):
        within_FF += (x - mean_F).T @ (x - mean_F) / len(x) / len(by_domain)
    return RoutingPrior(means_MF.mean(axis=0), away_MF.T @ away_MF / len(means_MF), within_FF)


def posterior_scores(
    prior: RoutingPrior, shares_LR: np.ndarray, num_documents: int, reach: float | None = None
) -> np.ndarray:
    """A domain's router probabilities, given those of some of its documents, (L,R).

    m + A (A + W/n)⁻¹ (x − m), with m the prior's mean, W the covariance within domains, n the
    documents, and A = B + reach · W: a domain may differ from the others as they do among
    themselves (B), and in any way in which documents do. With many documents it is x.

    Args:
      prior: the prior.
      shares_LR: x, mean router probabilities of the documents.
      num_documents: n.
      reach: near 0, only combinations of the prior's domains are likely; a large one gives x. None:
        `likeliest_reach`.
    """
    if reach is None:
        reach = likeliest_reach(prior, shares_LR, num_documents)
    away_F = shares_LR.reshape(-1) - prior.mean_F
    domain_FF = prior.between_FF + reach * prior.within_FF
    weighted_F = np.linalg.solve(_covariance(prior, num_documents, reach), away_F)
    return (prior.mean_F + domain_FF @ weighted_F).reshape(shares_LR.shape)


def likeliest_reach(prior: RoutingPrior, shares_LR: np.ndarray, num_documents: int) -> float:
    """The one of `REACHES` under which documents have the largest density, N(x; m, A + W/n)."""
    away_F = shares_LR.reshape(-1) - prior.mean_F

    def evidence(reach: float) -> float:
        covariance_FF = _covariance(prior, num_documents, reach)
        log_det = np.linalg.slogdet(covariance_FF).logabsdet
        return -(log_det + away_F @ np.linalg.solve(covariance_FF, away_F)) / 2

    return max(REACHES, key=evidence)


def _covariance(prior: RoutingPrior, num_documents: int, reach: float) -> np.ndarray:
    """A + W/n, (F,F), of full rank: shares of a layer sum to 1, so there is no scatter that way."""
    within_FF = prior.within_FF
    F = len(within_FF)
    jitter_FF = _JITTER * np.trace(within_FF) / F * np.eye(F)
    return prior.between_FF + (reach + 1 / num_documents) * within_FF + jitter_FF


def document_shares(
    model: ModelFunctions,
    params: Params,
    documents: Sequence[np.ndarray],
    pad_id: int,
    progress: Callable[[str], None] = lambda _: None,
) -> np.ndarray:
    """Mean router probabilities of each document's first window of tokens, (N,L,R) float64.

    Args:
      model: on a mesh, with attention within documents; no expert is left out.
      params: on its devices.
      documents: int32 ids each.
      pad_id: id of padding tokens.
      progress: called with lines about the progress.
    """
    mesh, S = model.mesh, model.config.data.seq_len
    assert mesh is not None
    rows = max(1, BATCH_TOKENS // S) * mesh.size
    where = mesh_lib.windows_sharding(mesh)
    sums, first = [], 0
    run = _sums(model, rows * S)
    for batch in pack([ids[:S] for ids in documents], S, rows, pad_id):
        # Documents are segments: none is longer than a window.
        counts_B = batch.segment_ids.max(axis=1) + 1
        starts_B1 = (np.cumsum(counts_B) - counts_B)[:, None]
        numbers_BS = np.where(batch.segment_ids >= 0, starts_B1 + batch.segment_ids, -1)
        batch = batch._replace(domain_ids=numbers_BS.astype(np.int32))
        found_LMR = run(params, jax.tree.map(lambda a: jax.device_put(a, where), batch))
        sums.append(np.asarray(found_LMR, np.float64)[:, : counts_B.sum()])
        first += int(counts_B.sum())
        progress(f"routing of {first:,} of {len(documents):,} documents")
    sums_NLR = np.moveaxis(np.concatenate(sums, axis=1), 1, 0)
    return sums_NLR / sums_NLR.sum(axis=-1, keepdims=True)


def _sums(model: ModelFunctions, most: int) -> Callable:
    """Router probabilities summed by document number, (L,most,R); that many are in a batch."""

    def sums(params, batch):
        return model.hidden(params, batch, num_domains=most)[1].domain_probs_MR

    return jax.jit(sums)


def store_prior(
    model: ModelFunctions,
    params: Params,
    store: TokenStore,
    split: str,
    pad_id: int,
    progress: Callable[[str], None] = lambda _: None,
) -> RoutingPrior:
    """The prior of a store's domains, by at most `MOST_DOCUMENTS` documents of each.

    Raises:
      UsageError: the split lacks the documents, see `prior_of`.
    """
    documents: list[np.ndarray] = []
    domains: list[int] = []
    if store.count(split, "documents"):
        for one in shuffled_documents(store, split, 0):
            enough = domains.count(one.domain_id) >= MOST_DOCUMENTS
            if len(one.tokens) >= MIN_TOKENS and one.domain_id >= 0 and not enough:
                documents.append(one.tokens)
                domains.append(one.domain_id)
    if len(set(domains)) < 2:
        raise UsageError(
            f"--prior {store.path}: {len(set(domains))} domains with documents of {MIN_TOKENS}"
            f" tokens in split {split}, not 2 or more; give a store with more"
        )
    return prior_of(document_shares(model, params, documents, pad_id, progress), np.array(domains))

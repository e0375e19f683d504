"""Log-likelihoods of shared, packed and cut requests are those of each request by itself."""

import jax
import numpy as np
import pytest
from cases import few
from tiny import dense_config, tiny_config

from emo_jax.batch import from_documents
from emo_jax.config import MeshConfig
from emo_jax.model.functions import ModelFunctions
from emo_jax.parallel.mesh import make_mesh
from emo_jax.selection.variants import within_documents
from emo_jax.tasks.likelihoods import Likelihoods
from emo_jax.tasks.rows import Request, cut_left, packed

WINDOW = 32


def _requests(vocab: int = 50) -> list[Request]:
    """Choices of one and of several tokens, equal prompts, lone ones, one that fills the window."""
    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(0, vocab, n).tolist()  # noqa: E731
    made = []
    for length in (3, 9, 9, 20):
        prompt = ids(length)
        made += [Request(prompt, ids(n)) for n in (1, 4, 2, 3)]
    prompt = ids(7)
    made += [Request(prompt, [n]) for n in (1, 2, 3, 1)]
    made += [Request([5], ids(WINDOW)), Request(ids(12), ids(6)), Request(ids(1), ids(1))]
    return made


def _one_by_one(config, params, requests, keep_LR=None):
    """From the logits of the whole model, a request a row."""
    model = ModelFunctions(config)
    found = []
    for prompt, continuation, domain in requests:
        tokens = np.zeros((1, WINDOW), np.int32)
        ids = [*prompt, *continuation][:-1]
        tokens[0, : len(ids)] = ids
        segments = np.where(np.arange(WINDOW)[None] < len(ids), 0, -1)
        batch = from_documents(tokens, segments)._replace(
            domain_ids=np.full((1, WINDOW), domain, np.int32)
        )
        keep = {} if keep_LR is None else {"keep_LMR": keep_LR}
        logits_SV = np.asarray(model.logits(params, batch, **keep))[0, : len(ids)]
        logs_SV = np.asarray(jax.nn.log_softmax(logits_SV, axis=-1))[-len(continuation) :]
        nats = logs_SV[np.arange(len(continuation)), continuation].sum()
        found.append((nats, bool((logs_SV.argmax(-1) == continuation).all())))
    return found


def _check(found, expected):
    np.testing.assert_allclose([f.nats for f in found], [e[0] for e in expected], atol=2e-5)
    assert [f.greedy for f in found] == [e[1] for e in expected]


MESHES = [{}, {"expert": 2, "context": 2}, {"tensor": 2, "context": 2, "replica": 2}]


@pytest.mark.parametrize("sizes", few(MESHES), ids=str)
def test_likelihoods_are_those_of_each_request_by_itself(sizes):
    config = within_documents(tiny_config())
    mesh = make_mesh(MeshConfig(**sizes))
    model = ModelFunctions(config, mesh)
    params = model.init(0)
    placed = jax.device_put(params, model.param_shardings())
    requests = _requests()
    # Two that the model would write by itself.
    top = int(np.argmax(_logits_after(config, params, [7, 8])))
    requests += [Request([7, 8], [top]), Request([7, 8], [top, 3])]
    expected = _one_by_one(config, params, requests)
    assert [greedy for _, greedy in expected].count(True) >= 1
    seen = []
    scorer = Likelihoods(model)
    _check(scorer.of(placed, requests, progress=seen.append), expected)
    assert seen == sorted(seen) and seen[-1] < sum(len(r[0]) + len(r[1]) for r in requests)


def _logits_after(config, params, ids):
    batch = from_documents(np.array([ids]), np.zeros((1, len(ids)), int))
    return np.asarray(ModelFunctions(config).logits(params, batch))[0, -1]


@pytest.mark.system
def test_each_domain_uses_its_own_experts(one_device_mesh):
    config = within_documents(tiny_config())
    model = ModelFunctions(config, one_device_mesh)
    params = model.init(0)
    keep_LMR = np.zeros((2, 2, 7), bool)
    keep_LMR[:, 0, :3] = keep_LMR[:, 1, 3:] = True
    requests = [r._replace(domain=n % 2) for n, r in enumerate(_requests())]
    expected = _one_by_one(config, params, requests, keep_LMR)
    whole = _one_by_one(config, params, requests)
    assert max(abs(a[0] - b[0]) for a, b in zip(expected, whole, strict=True)) > 1e-2
    _check(Likelihoods(model).of(params, requests, keep_LMR=keep_LMR), expected)


def test_a_dense_model(one_device_mesh):
    config = within_documents(dense_config())
    model = ModelFunctions(config, one_device_mesh)
    params = model.init(0)
    requests = _requests()
    _check(Likelihoods(model).of(params, requests), _one_by_one(config, params, requests))


# --- rows ----------------------------------------------------------------------------------------


def test_a_prompt_is_read_once_and_a_single_token_is_no_second_pass():
    prompt = list(range(40))
    (rows,) = packed([Request(prompt, [n]) for n in range(4)], 128)
    assert rows.tokens == 40 and rows.arrays.tokens_BN.shape[1] == 0
    (rows,) = packed([Request(prompt, [n, 9, 9]) for n in range(4)], 128)
    assert rows.tokens == 40 + 4 * 2
    # The last token of a continuation is predicted and followed by nothing.
    assert (rows.requests_BK >= 0).sum() == 4 * 3


def test_the_number_of_shapes_is_bounded():
    rng = np.random.default_rng(0)
    requests = [
        Request(rng.integers(0, 50, length).tolist(), rng.integers(0, 50, n % 7 + 1).tolist())
        for n, length in enumerate(rng.integers(1, 900, 3000))
    ]
    requests += [r._replace(continuation=[*r.continuation, 3]) for r in requests[:1500]]
    made = packed(requests, 1024, devices=4, ways=2)
    shapes = {tuple(a.shape for a in rows.arrays) for rows in made}
    assert len(made) > 2 * len(shapes) and len(shapes) <= 2 * 7  # lengths 128, 192, 256, …, 1024
    for number in (0, 1700):
        assert sum((rows.requests_BK == number).sum() for rows in made) == len(
            requests[number].continuation
        )
    filled = sum(rows.tokens for rows in made)
    there = sum(r.arrays.tokens_BT.size + r.arrays.tokens_BN.size for r in made)
    assert filled > 0.75 * there


def test_what_is_too_long_is_cut_from_the_left():
    request = Request(list(range(10)), [20, 21, 22])
    assert cut_left(request, 12) == request  # the last token is not an input
    assert cut_left(request, 6).prompt == [6, 7, 8, 9]

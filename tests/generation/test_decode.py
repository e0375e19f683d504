"""Generation with a cache is the model without one, token by token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import few
from tiny import NO_POOL, UNIFORM, dense_config, tiny_config

from emo_jax.batch import from_documents
from emo_jax.config import MoeConfig
from emo_jax.generation import cache as cache_lib
from emo_jax.generation.decode import Generator, continue_tokens
from emo_jax.generation.sampling import Sampling, allowed_logits, sample
from emo_jax.model.few_tokens import few_token_experts
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe.experts import ExpertWeights, experts
from emo_jax.moe.router import Routing

EOS, NEVER = 7, -1
PROMPTS = [
    [3, 1, 4, 1, 5],
    [9],
    [2, EOS, 6, 5, 3, 5, 8, 9, 11],  # a document, and the beginning of another
    [EOS],  # the beginning of a document
    [1, 1, 2, 3, 5, 8, 13, 21, 34, 1, 1, 2, 3, EOS],
]


def _some_shared():
    config = tiny_config(num_experts=10, num_shared_experts=3)
    moe = dataclasses.replace(config.moe, shared_picks=2, top_k=config.moe.top_k - 1)
    return dataclasses.replace(config, moe=moe)


CONFIGS = {
    "emo": tiny_config(pool=UNIFORM),
    "window": tiny_config(pool=UNIFORM, attention="window"),
    "standard": tiny_config(pool=NO_POOL),
    "three shared": tiny_config(num_experts=10, num_shared_experts=3),
    "none shared": tiny_config(num_shared_experts=0),
    "shared pools": _some_shared(),
    "dense": dense_config(),
    "grouped": tiny_config(pool=UNIFORM, num_heads=4, num_kv_heads=2),
    "bfloat16": tiny_config(pool=UNIFORM, compute_dtype="bfloat16"),
}


@functools.cache
def _named(name):
    """A model, and its logits of whole rows, compiled once."""
    model = ModelFunctions(CONFIGS[name])

    @jax.jit
    def logits(params, tokens, ids):
        batch = from_documents(np.zeros(tokens.shape), np.zeros(tokens.shape))
        return model.logits(params, batch._replace(tokens=tokens, segment_ids=ids, pool_ids=ids))

    return model, logits


def _full_logits(name, params, rows):
    """(B,S,V) of rows computed whole; an end of document belongs to its document."""
    tokens, ids = np.zeros((2, len(PROMPTS), 32), np.int32)
    ids[:] = -1
    for b, row in enumerate(rows):
        ends = np.array(row) == EOS
        tokens[b, : len(row)], ids[b, : len(row)] = row, np.cumsum(ends) - ends
    return np.asarray(_named(name)[1](params, tokens, ids))


def _padded(prompts, places):
    tokens = np.full((len(prompts), places), 43, np.int32)  # what padding holds must not matter
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return jnp.asarray(tokens), jnp.asarray([len(p) for p in prompts], jnp.int32)


def _cached_logits(model, params, more):
    """Logits (B,V) after the prompts and after each column of `more`."""
    params = cache_lib.inference_params(model.config, params)
    tokens, lengths = _padded(PROMPTS, 16)
    prefill = functools.partial(cache_lib.prefill, model, eos_id=EOS, places=32)
    cache, logits = jax.jit(prefill)(params, tokens, lengths)
    steps = [logits]
    append = jax.jit(lambda params, tokens, cache: cache_lib.append(model, params, tokens, cache))
    for tokens in more.T:
        cache, logits = append(params, jnp.asarray(tokens), cache)
        steps.append(logits)
    return [np.asarray(logits) for logits in steps]


def _more(config, steps=8):
    rng = np.random.default_rng(1)
    made = rng.integers(8, config.model.vocab_size, (len(PROMPTS), steps)).astype(np.int32)
    return made


@pytest.mark.parametrize("name", few([name for name in CONFIGS if name != "bfloat16"], 3))
def test_logits_at_every_step_are_those_of_the_whole_row(name):
    model, _ = _named(name)
    params, more = model.init(0), _more(model.config)
    steps = _cached_logits(model, params, more)
    V = model.config.model.vocab_size
    whole = _full_logits(name, params, [[*p, *m] for p, m in zip(PROMPTS, more, strict=True)])
    for b, prompt in enumerate(PROMPTS):
        for i, logits in enumerate(steps):
            at = len(prompt) - 1 + i
            np.testing.assert_allclose(logits[b, :V], whole[b, at, :V], rtol=0, atol=1e-5)
            assert np.isneginf(logits[b, V:]).all()


def test_a_row_that_gets_no_token_stays_as_it_is():
    model, _ = _named("emo")
    params = model.init(0)
    tokens, lengths = _padded(PROMPTS, 16)
    prefill = functools.partial(cache_lib.prefill, model, eos_id=EOS, places=32)
    before, _ = jax.jit(prefill)(params, tokens, lengths)
    append = jax.jit(lambda tokens, cache: cache_lib.append(model, params, tokens, cache))
    given = jnp.asarray([11, -1, 12, -1, 13])
    after, logits = append(given, before)
    np.testing.assert_array_equal(after.length_B, lengths + (given >= 0))
    # Row 1 goes on as if nothing had been, and the others' tokens are none of its business.
    _, later = append(jnp.full(5, 14), after)
    _, at_once = append(jnp.full(5, 14), before)
    np.testing.assert_array_equal(later[1], at_once[1])
    assert (later[0] != at_once[0]).any() and np.isfinite(logits[..., :50]).all()


def test_bfloat16_differs_by_its_rounding_alone():
    """Both ways sum in float32 and round to bfloat16, at times to neighbours of each other.

    So they differ by no more than bfloat16 does from float32, and the cache adds no error to that.
    """
    model, _ = _named("bfloat16")
    params, more = model.init(0), _more(model.config)
    rows = [[*p, *m] for p, m in zip(PROMPTS, more, strict=True)]
    steps = _cached_logits(model, params, more)
    whole, true = (_full_logits(name, params, rows) for name in ("bfloat16", "emo"))
    cached, whole, true = (
        np.stack([at(b, len(p) - 1 + i) for b, p in enumerate(PROMPTS) for i in range(len(steps))])
        for at in (
            lambda b, t: steps[t - len(PROMPTS[b]) + 1][b, :50],
            lambda b, t: whole[b, t, :50],
            lambda b, t: true[b, t, :50],
        )
    )
    norm = np.linalg.norm
    assert 0 < norm(cached - whole) <= norm(whole - true) < 0.02 * norm(true)
    assert norm(cached - true) <= 1.2 * norm(whole - true)


def _greedy_without_cache(name, params, prompts, num_tokens):
    rows = [list(prompt) for prompt in prompts]
    for _ in range(num_tokens):
        logits = _full_logits(name, params, rows)
        for b, row in enumerate(rows):
            if len(row) == len(prompts[b]) or row[-1] != EOS:
                row.append(int(logits[b, len(row) - 1].argmax()))
    made = [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]
    return [tokens[:-1] if tokens[-1] == EOS else tokens for tokens in made]


@pytest.mark.parametrize("name", few([name for name in CONFIGS if name != "bfloat16"], 3))
def test_greedy_tokens_of_a_batch_are_those_of_each_row_without_a_cache(name):
    model, _ = _named(name)
    params = model.init(2)
    rows = Generator(model, params, EOS).generate(PROMPTS, 12, rows=8)
    expected = _greedy_without_cache(name, params, PROMPTS, 12)
    assert [row.tokens for row in rows] == expected
    assert len({tuple(tokens) for tokens in expected}) >= 4
    for row in rows:
        assert row.ended == ("max_tokens" if len(row.tokens) == 12 else "eos")


def test_greedy_tokens_of_kept_experts_are_those_of_the_model_that_has_no_others():
    model, _ = _named("standard")
    params = model.init(2)
    keep_LR = np.arange(7) < np.array([[4], [3]])
    generator = Generator(model, params, EOS)
    whole = generator.generate(PROMPTS, 12)
    generator.keep_LR = keep_LR
    kept = generator.generate(PROMPTS, 12)
    assert kept != whole
    for b, row in enumerate(kept):
        tokens = [*PROMPTS[b], *row.tokens]
        ends = np.array(tokens) == EOS
        ids = (np.cumsum(ends) - ends)[None]
        batch = from_documents(np.array([tokens]), ids)._replace(domain_ids=np.zeros_like(ids))
        logits = model.logits(params, batch, keep_LMR=keep_LR[:, None])
        chosen = np.asarray(logits)[0, len(PROMPTS[b]) - 1 : -1].argmax(-1)
        assert chosen.tolist() == row.tokens


@functools.cache
def _generator(seed=0, eos=NEVER, sampling=Sampling(1.0, 20, 0.9)):  # noqa: B008 (frozen)
    model, _ = _named("emo")
    return Generator(model, model.init(0), eos, sampling, seed)


def _drawn(prompts, *, max_tokens=20, rows=5, watch=None, **settings):
    return _generator(**settings).generate(prompts, max_tokens, rows=rows, watch=watch)


def test_a_row_ends_with_its_document_at_its_length_or_at_the_window():
    (free,) = _drawn(PROMPTS[:1])
    assert free.ended == "max_tokens" and len(free.tokens) == 20
    eos = free.tokens[3]
    (ended,) = _drawn(PROMPTS[:1], eos=eos)
    assert ended == (free.tokens[: free.tokens.index(eos)], "eos")
    short, full = _drawn([PROMPTS[0], list(range(20))], max_tokens=12)
    assert (len(short.tokens), short.ended) == (12, "max_tokens")
    assert (len(full.tokens), full.ended) == (12, "max_tokens")
    short, full = _drawn([PROMPTS[0], list(range(20))], max_tokens=13)
    assert (len(short.tokens), short.ended) == (13, "max_tokens")
    assert (len(full.tokens), full.ended) == (12, "window")
    (last,) = _drawn([list(range(31))])
    assert (len(last.tokens), last.ended) == (1, "window")
    with pytest.raises(ValueError, match=r"32 tokens, not in 1\.\.31"):
        _drawn([list(range(32))])
    with pytest.raises(ValueError, match="0 tokens"):
        _drawn([[]])
    assert _drawn(PROMPTS[:1], max_tokens=0)[0].tokens == []


def test_a_watcher_ends_rows_and_the_others_go_on():
    alone = _drawn(PROMPTS[:3])
    seen = []

    def watch(made):
        seen.append([len(tokens) for tokens in made])
        return [False, len(made[1]) >= 5, False]

    rows = _drawn(PROMPTS[:3], watch=watch)
    assert rows[0] == alone[0] and rows[2] == alone[2]
    assert rows[1].ended == "stop" and rows[1].tokens == alone[1].tokens[:9]
    assert seen == [[1, 1, 1], [9, 9, 9], [17, 9, 17], [20, 9, 20]]


def test_a_seed_and_a_prompt_are_a_text_whatever_else_is_in_the_batch():
    together = _drawn(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        assert _drawn([prompt], rows=1)[0] == together[i]
        assert _drawn([PROMPTS[0], prompt, [33, 2]], rows=6)[1] == together[i]
    assert _drawn(PROMPTS[::-1]) == together[::-1]
    other = _drawn(PROMPTS, seed=1)
    assert all(a.tokens != b.tokens for a, b in zip(together, other, strict=True))


def test_texts_of_a_batch_are_drawn_independently():
    """Prompts of one length, and one prompt again and again: no two rows draw the same noise."""
    model, _ = _named("emo")
    flat = jax.tree.map(jnp.zeros_like, model.init(0))  # every token is as likely as any other
    generator = Generator(model, flat, NEVER, Sampling(1.0))
    others = generator.generate([[3, 1], [1, 3], [9, 9]], 24)
    equal = generator.generate([[3, 1]] * 3, 24, numbers=[0, 1, 2])
    rows = [*others, *equal[1:]]
    assert equal[0] == others[0]
    for i, row in enumerate(rows):
        for other in rows[:i]:
            same = np.mean(np.array(row.tokens) == np.array(other.tokens))
            assert same < 0.3, (row, other)  # 50 tokens: 2 % of them by chance
    assert generator.generate([[3, 1]] * 3, 24, numbers=[2, 1, 0]) == equal[::-1]


def test_prompts_of_any_length_need_few_programs():
    model, _ = _named("emo")
    generator = Generator(model, model.init(0), NEVER)
    for length in range(1, 31):
        generator.generate([list(range(length))], 1 + length % 3)
    names = sorted(name[0] for name in generator._programs)
    assert names == ["decode"] * 2 + ["prefill"] * 3  # lengths of 16 and 32, in caches of both
    speed = generator.speed
    assert speed.prompt_tokens == sum(range(1, 31)) and speed.compile_seconds > 0
    assert speed.new_tokens == sum(min(length % 3, 31 - length) for length in range(1, 31))


def test_weights_are_cast_but_not_the_router_and_the_norms():
    model = ModelFunctions(tiny_config(compute_dtype="bfloat16"))
    params = cache_lib.inference_params(model.config, model.init(0))
    found = {
        jax.tree_util.keystr(k): v.dtype for k, v in jax.tree_util.tree_leaves_with_path(params)
    }
    kept = {name for name, dtype in found.items() if dtype == jnp.float32}
    for name in found.keys() - kept:  # as bits in the layers, see `few_tokens.as_bits`
        assert found[name] == jnp.dtype("uint16" if "layers" in name else "bfloat16")
    assert len(kept) == 4 and all("scale" in name or "router" in name for name in kept)


def test_bfloat16_weights_of_all_layers_are_not_converted_at_once():
    """XLA:CPU would hold them in float32 too, see `few_tokens.as_bits`."""
    config = tiny_config(compute_dtype="bfloat16", num_layers=64, embed_dim=64, num_heads=8)
    model = ModelFunctions(config)
    params = jax.eval_shape(
        lambda: cache_lib.inference_params(config, model.init(0)),
    )
    layers = sum(leaf.size for leaf in jax.tree.leaves(params["layers"]))
    place = jax.ShapeDtypeStruct((1,), jnp.int32)
    passed = functools.partial(cache_lib.prefill, model, eos_id=EOS, places=16)
    compiled = jax.jit(passed).lower(params, jax.ShapeDtypeStruct((1, 16), jnp.int32), place)
    assert compiled.compile().memory_analysis().temp_size_in_bytes < layers


@pytest.mark.parametrize("backend", ["blocked", "ragged_dot"])
def test_few_tokens_are_computed_as_many_are(backend):
    """Two shared experts; the last token is none (index R)."""
    rng = np.random.default_rng(0)
    L, B, D, F, R, s = 3, 4, 16, 8, 6, 2
    stacked = ExpertWeights(
        *(jnp.asarray(rng.normal(size=(L, R + s, *shape)), jnp.float32) for shape in ((D, F),) * 2),
        jnp.asarray(rng.normal(size=(L, R + s, F, D)), jnp.float32),
    )
    x = jnp.asarray(rng.normal(size=(B, 1, D)), jnp.float32)
    indices = jnp.asarray([[[0, 5]], [[5, 2]], [[3, 1]], [[R, R]]], jnp.int32)
    weights = jnp.asarray(rng.random((B, 1, 2)), jnp.float32).at[3].set(0)
    routing = Routing(weights, indices)
    config = MoeConfig(
        num_experts=R + s, top_k=2 + s, expert_dim=F, num_shared_experts=s, backend=backend
    )
    ours = few_token_experts(x, routing, stacked, jnp.asarray(1), config=config)
    layer = ExpertWeights(*(w[1] for w in stacked))
    blocked = dataclasses.replace(config, backend="blocked")
    theirs, _ = experts(x, routing, layer, blocked)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


PROBS = [0.4, 0.05, 0.3, 0.05, 0.2]


@pytest.mark.parametrize(
    ("top_k", "top_p", "left"),
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (0, 0.39, [0]),
        (0, 0.41, [0, 2]),
        (0, 0.69, [0, 2]),
        (0, 0.71, [0, 2, 4]),
        (0, 0.91, [0, 1, 2, 3, 4]),  # two equal ones stay together
        (0, 1e-9, [0]),
        (1, 1.0, [0]),
        (3, 1.0, [0, 2, 4]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (2, 0.56, [0]),  # 0.4 of 0.7
        (2, 0.58, [0, 2]),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_that_may_be_drawn(top_k, top_p, left, temperature):
    """Logits of both signs; the temperature comes first, so the probabilities are after it."""
    logits = temperature * (jnp.log(jnp.asarray([PROBS, PROBS[::-1]])) + 2)
    allowed = np.asarray(allowed_logits(logits, Sampling(temperature, top_k, top_p)))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(allowed[0])), left)
    assert sorted(4 - np.flatnonzero(np.isfinite(allowed[1]))) == left
    np.testing.assert_allclose(allowed[0, left], np.log(np.array(PROBS))[left] + 2, rtol=1e-5)


def test_draws_follow_the_distribution():
    n = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(PROBS)), (n, 5))
    keys = jnp.broadcast_to(jax.random.key(0), (n,))
    drawn = sample(logits, Sampling(1.0, 0, 0.85), keys, jnp.arange(n))
    expected = np.array([0.4, 0, 0.3, 0, 0.2]) / 0.9
    share = np.bincount(drawn, minlength=5) / n
    np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / n))
    np.testing.assert_array_equal(sample(logits[:4], Sampling(), None, None), 0)


def test_continue_tokens():
    model, _ = _named("emo")
    params = model.init(0)
    made = continue_tokens(model, params, PROMPTS[0], num_tokens=6, eos_id=EOS)
    assert made == _greedy_without_cache("emo", params, PROMPTS, 6)[0]
    drawn = continue_tokens(
        model, params, PROMPTS[0], num_tokens=6, eos_id=NEVER, temperature=1.0, seed=3
    )
    assert (
        drawn == _drawn(PROMPTS[:1], seed=3, sampling=Sampling(1.0), max_tokens=6, rows=1)[0].tokens
    )

"""Draws docs/pools.svg from a trained model: what the router says of real documents.

    emo quickstart --steps 300
    python docs/draw_pools.py emo_quickstart/emo_tiny

Legend: N documents, S tokens, L layers, R routed experts, T tokens shown of one document.
"""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from emo_jax.batch import from_documents
from emo_jax.config import moe_of
from emo_jax.data.store import TokenStore
from emo_jax.model.functions import ModelFunctions
from emo_jax.moe.pools import pools_of_size
from emo_jax.saved.load import load_model

LAYER, POOL = 1, 16
DOMAINS, EACH, S = ("law", "cooking", "music_abc"), 4, 256
SHOWN_TOKENS = 14
# Read on white and on black alike.
TEXT, HEAT, MARK = "#7d8590", "#12a594", "#e5484d"
CELL, LEFT, TOP, GAP = 12, 150, 30, 92


def documents(store: TokenStore) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The first EACH test documents of each domain with S tokens: (N,S), mask, domain names."""
    rows: list[np.ndarray] = []
    names: list[str] = []
    found = store.documents("test", 0, store.count("test", "documents"))
    for domain in DOMAINS:
        number = store.domains.index(domain)
        long = [d for d in found if d.domain_id == number and len(d.tokens) >= S][:EACH]
        assert len(long) == EACH, f"{domain}: only {len(long)} documents of {S} tokens"
        rows += [np.asarray(d.tokens[:S]) for d in long]
        names += [domain] * EACH
    return np.stack(rows), np.zeros((len(rows), S), np.int32), names


def router_sums(model, params, tokens, segments, groups, num_groups) -> np.ndarray:
    """Router probabilities of the layer, summed over the tokens of each group: (groups, R)."""
    batch = from_documents(tokens, segments)._replace(domain_ids=groups.astype(np.int32))
    shape = (model.config.model.num_layers, *tokens.shape)
    pools = pools_of_size(moe_of(model.config).pool, POOL, shape)
    _, stats = model.hidden(params, batch, pools=pools, num_domains=num_groups)
    return np.asarray(stats.domain_probs_MR)[LAYER]


def cell(x: float, y: float, share: float, *, in_pool: bool, picked: bool = False) -> str:
    """A square, as opaque as its share; a line below it in the pool, a dot where it is picked."""
    parts = [f'<use href="#c" x="{x}" y="{y}" opacity="{0.05 + 0.95 * share:.2f}"/>']
    if in_pool:
        parts.append(f'<use href="#l" x="{x}" y="{y}"/>')
    if picked:
        parts.append(f'<use href="#d" x="{x}" y="{y}"/>')
    return "".join(parts)


def text(x: float, y: float, content: str, anchor: str = "start", size: int = 11) -> str:
    """A line of text."""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{TEXT}"'
        f' font-family="sans-serif">{escape(content)}</text>'
    )


def main(workdir: str) -> None:
    """Writes the picture beside this file."""
    loaded = load_model(workdir)
    config, tokenizer = loaded.config, loaded.need_tokenizer()
    assert config.moe is not None
    model, params = ModelFunctions(config), loaded.params
    tokens, segments, names = documents(TokenStore.open(config.data.store))
    N, R = len(tokens), config.moe.num_routed_experts
    rows_NS = np.broadcast_to(np.arange(N)[:, None], tokens.shape)
    sums_NR = router_sums(model, params, tokens, segments, rows_NS, N)
    each_token = np.full(tokens.shape, -1)
    each_token[0, :SHOWN_TOKENS] = np.arange(SHOWN_TOKENS)
    probs_TR = router_sums(model, params, tokens, segments, each_token, SHOWN_TOKENS)

    pool_NR = np.zeros((N, R), bool)
    np.put_along_axis(pool_NR, np.argsort(-sums_NR, axis=1, kind="stable")[:, :POOL], True, axis=1)
    inside_TR = np.where(pool_NR[0], probs_TR, 0.0)
    picks_TK = np.argsort(-inside_TR, axis=1, kind="stable")[:, : config.moe.num_routed_picks]
    # Columns: experts by the domain whose pools they are in most, so that pools are seen as blocks.
    use_MR = pool_NR.reshape(len(DOMAINS), EACH, R).sum(axis=1)
    order = sorted(
        range(R), key=lambda e: (-use_MR.max(0)[e] == 0, use_MR[:, e].argmax(), -use_MR[:, e].max())
    )

    out = [text(LEFT, TOP - 10, f"tokens of one document × {R} routed experts", size=12)]
    top_share = probs_TR.max()
    low_N1, high_N1 = sums_NR.min(1, keepdims=True), sums_NR.max(1, keepdims=True)
    share_NR = (sums_NR - low_N1) / (high_N1 - low_N1)
    for t in range(SHOWN_TOKENS):
        y = TOP + t * CELL
        word = tokenizer.decode([int(tokens[0, t])]).strip() or "␣"
        out.append(text(LEFT - 8, y + CELL - 3, word, "end"))
        for column, e in enumerate(order):
            share = float(probs_TR[t, e] / top_share) ** 0.5
            out.append(cell(LEFT + column * CELL, y, share, in_pool=False, picked=e in picks_TK[t]))
    y = TOP + SHOWN_TOKENS * CELL + 6
    out.append(text(LEFT - 8, y + CELL - 3, f"sum of all {S}: the pool", "end"))
    for column, e in enumerate(order):
        share = float(share_NR[0, e])
        out.append(cell(LEFT + column * CELL, y, share, in_pool=bool(pool_NR[0, e])))
    top = y + GAP - 46
    out.append(text(LEFT, top - 10, f"the pools of {N} documents ({POOL} experts each)", size=12))
    for n in range(N):
        y = top + n * CELL + (n // EACH) * 5
        if n % EACH == 0:
            out.append(text(LEFT - 8, y + EACH * CELL / 2 + 4, names[n], "end"))
        for column, e in enumerate(order):
            share = float(share_NR[n, e])
            out.append(cell(LEFT + column * CELL, y, share, in_pool=bool(pool_NR[n, e])))
    width, height = LEFT + R * CELL + 6, top + N * CELL + 24
    title = f"Pools of {config.name} at step {loaded.step}, layer {LAYER}"
    svg = "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
            f"<title>{escape(title)}</title>",
            "<defs>",
            f'<rect id="c" width="{CELL - 1}" height="{CELL - 1}" rx="1.5" fill="{HEAT}"/>',
            f'<rect id="l" y="{CELL - 2.5}" width="{CELL - 1}" height="2" fill="{MARK}"/>',
            f'<circle id="d" cx="{CELL / 2 - 0.5}" cy="{CELL / 2 - 1}" r="2.6" fill="{MARK}"/>',
            "</defs>",
            *out,
            "</svg>\n",
        ]
    )
    (Path(__file__).parent / "pools.svg").write_text(svg)
    overlap = (pool_NR[:, None] & pool_NR[None]).sum(-1) / POOL
    same = np.equal.outer(names, names) & ~np.eye(N, dtype=bool)
    print(f"{title}: of a pool's {POOL} experts, {POOL * overlap[same].mean():.1f} are in that")
    other = overlap[np.not_equal.outer(names, names)].mean()
    print(f"of another document of its domain, {POOL * other:.1f} in that of one of another domain")


if __name__ == "__main__":
    main(sys.argv[1])

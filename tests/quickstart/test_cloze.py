"""The quickstart's task: answers follow from the logits of whole texts, with a domain's experts."""

import json

import numpy as np
import pytest
from tiny import tiny_config

from emo_jax.batch import from_documents
from emo_jax.model.functions import ModelFunctions
from emo_jax.quickstart.cloze import ITEMS, ClozeScores, cloze_items, cloze_scores
from emo_jax.quickstart.task_items import Item
from emo_jax.selection.variants import within_documents
from emo_jax.tokenizer.load import load_tokenizer

WINDOW, DOMAINS = 32, ("law", "sea")


def _items() -> list[Item]:
    draw = np.random.default_rng(0)
    text = lambda n: "".join(chr(97 + c) for c in draw.integers(0, 26, n))  # noqa: E731
    return [
        Item(str(i), DOMAINS[i % 2], text(9), tuple(" " + text(5) for _ in range(4)), i % 4, ())
        for i in range(24)
    ]


def _slowly(config, params, items, keep_LMR) -> float:
    """A choice a row, from the logits of the whole model."""
    texts = [(item, item.query + choice) for item in items for choice in item.choices]
    rows = [ids.tolist() for ids in load_tokenizer("bytes").encode_batch([t for _, t in texts])]
    tokens_BS, segments_BS = np.zeros((2, len(rows), WINDOW), np.int32)
    segments_BS -= 1
    for n, ids in enumerate(rows):
        tokens_BS[n, : len(ids)], segments_BS[n, : len(ids)] = ids, 0
    domains_B1 = np.array([[DOMAINS.index(item.domain)] for item, _ in texts])
    batch = from_documents(tokens_BS, segments_BS)._replace(
        domain_ids=np.broadcast_to(domains_B1, tokens_BS.shape).astype(np.int32)
    )
    logits = ModelFunctions(config).logits(params, batch, keep_LMR=keep_LMR)
    logs = np.asarray(logits, np.float64)
    logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
    nats = [
        sum(logs[n, i - 1, ids[i]] for i in range(len(texts[n][0].query), len(ids)))
        for n, ids in enumerate(rows)
    ]
    answers = np.reshape(nats, (len(items), 4)).argmax(axis=1)
    return float((answers == [item.gold for item in items]).mean())


def test_answers_are_those_of_whole_texts_and_of_each_domains_experts():
    config = tiny_config(vocab_size=load_tokenizer("bytes").vocab_size)
    params = ModelFunctions(config).init(3)
    # Experts that matter to the answers.
    experts = params["layers"]["mlp"]["experts"]
    experts["down"] = experts["down"] * 30
    keep_LMR = np.zeros((2, 2, 7), bool)
    keep_LMR[:, 0, :3] = keep_LMR[:, 1, 3:] = True
    found = cloze_scores(config, params, load_tokenizer("bytes"), _items(), DOMAINS, {4: keep_LMR})
    within = within_documents(config)
    assert found.all_experts == _slowly(within, params, _items(), np.ones_like(keep_LMR))
    assert found.kept == {4: _slowly(within, params, _items(), keep_LMR)}
    assert found.kept[4] != _slowly(within, params, _items(), keep_LMR[:, ::-1])
    assert found.items == 24 and found.line("tiny", 8).startswith("tiny: which of four")


def test_the_same_number_of_items_for_each_domain(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for domain in ("a", "b", "c", "d"):
        for n in range(400):
            words = [f"{domain}{w}" for w in rng.integers(0, 500, 120)]
            sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, 120, 12)]
            lines.append({"id": f"{domain}{n}", "domain": domain, "text": " ".join(sentences)})
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = cloze_items(tmp_path / "corpus.jsonl", ("a", "c"))
    assert [item.domain for item in items] == ["a"] * ITEMS + ["c"] * ITEMS
    for item in items:
        assert len({choice.split()[0][0].lower() for choice in item.choices}) == 4
        assert item.choices[item.gold].split()[0][0].lower() == item.domain


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_line(share):
    line = ClozeScores(180, share, {16: 0.25, 8: 1.0}).line("emo_tiny", 64)
    assert line == (
        "emo_tiny: which of four sentences follows, of four domains (180 held-out items, chance"
        f" 25%): {share:.1%} with all 64 experts; 25.0% (16), 100.0% (8) with a part of them"
    )

"""The page holds what the activations say, in a form that no browser takes for markup."""

import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import runs
from pages import read_page
from runs import emo_here

from emo_jax.analysis.activations import Activations
from emo_jax.analysis.sample import Sample, SampleSettings, sample_documents
from emo_jax.data.store import TokenStore
from emo_jax.errors import UsageError
from emo_jax.explorer import explore as exploring
from emo_jax.explorer import page as page_lib
from emo_jax.explorer.explore import ExploreSettings, explore
from emo_jax.explorer.figures import figures

SAMPLE = ("--tokens", "1500", "--min-length", "8", "--clusters", "4")
LOSSES = ("--eval-windows", "4", "--ablate", "1")


@pytest.fixture(scope="module")
def written(finished_run, store, tmp_path_factory):
    """A page of the same model twice."""
    file = tmp_path_factory.mktemp("explore") / "page.html"
    argv = ("explore", finished_run, finished_run, "--data", store, "--output", file)
    assert emo_here(*argv, *SAMPLE, *LOSSES, "--figures", file.parent / "figures") == 0
    return file


def test_documents_are_those_of_the_sample(written, store):
    header, arrays = read_page(written)
    opened = TokenStore.open(store)
    sample = sample_documents(opened, "test", tokens=1500, min_length=8)
    tokenizer, start = opened.tokenizer(), 0
    assert header["domains"] == list(opened.domains)
    assert header["data"]["documents"] == len(sample.documents) == len(arrays["doc_ends"])
    for n, (ids, end) in enumerate(zip(sample.documents, arrays["doc_ends"], strict=True)):
        shown = "".join(header["texts"][i] for i in arrays["tokens"][start:end])
        assert shown == tokenizer.decode(ids, skip_special=False)
        assert arrays["doc_domain"][n] == sample.domain_ids[n]
        start = end


def test_domains_beyond_those_asked_for_are_one(finished_run, tmp_path, capsys):
    file, store = tmp_path / "page.html", runs.store_of_domains(tmp_path, finished_run, 5)
    argv = ("explore", finished_run, "--data", store, "--output", file, "--max-domains", 1)
    assert emo_here(*argv, *SAMPLE, *LOSSES) == 0
    header, arrays = read_page(file)
    count = len(TokenStore.open(store).domains)
    assert header["domains"][1] == f"other ({count - 1} domains)" and len(header["domains"]) == 2
    note = f"{count} domains: the 1 largest by name, {header['domains'][1]!r} as one"
    assert f"The store has {note}." in header["notes"]
    assert f"emo: {store}: {note} (--max-domains)\n" in capsys.readouterr().err
    assert set(arrays["doc_domain"]) == {0, 1}
    assert len(header["models"][0]["keep"]["loss"]) == 2


def test_models_say_the_same_as_their_activations(written, finished_run, store, tmp_path):
    header, arrays = read_page(written)
    first, second = header["models"]
    assert {**first, "name": 0} == {**second, "name": 0}  # the same model twice
    argv = ("activations", finished_run, "--data", store, "--output", tmp_path / "made")
    assert emo_here(*argv, "--tokens", "1500", "--min-length", "8") == 0
    found = Activations.open(tmp_path / "made")
    probs = found.probs(slice(None))
    N, L, R, K = found.num_tokens, 2, 7, 2
    assert (first["layers"], first["routed"], first["top_k"], first["shared"]) == (L, R, K, 1)
    np.testing.assert_array_equal(arrays["picks-0"], found.picks(slice(None)))
    largest = np.sort(probs, axis=-1)[..., ::-1][..., :K]
    assert np.abs(arrays["probs-0"] / 255 - largest).max() <= 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(arrays["picks-0"], arrays["picks-1"])
    use = np.array(first["use"])
    for m in range(len(header["domains"])):
        np.testing.assert_allclose(use[:, m], probs[found.domains_N == m].mean(0), atol=1e-4)
    for of, rows in (("token", N), ("document", len(found.doc_ends_D))):
        clusters = first[f"{of}_clusters"]["clusters"]
        assert sum(c["size"] for c in clusters) == rows
        assert sum(map(sum, (c["domains"] for c in clusters))) == rows
        ids = arrays[f"{of[0]}cluster-0"]
        np.testing.assert_array_equal(
            np.bincount(ids, minlength=len(clusters)), [c["size"] for c in clusters]
        )
    # A card's first document is the one whose tokens pick it most.
    card = first["experts"][1][3]
    picked = (arrays["picks-0"][:, 1] == 3).any(axis=1)
    shares = [part.mean() for part in np.split(picked, arrays["doc_ends"][:-1])]
    assert card["documents"][0][1] == pytest.approx(max(shares), abs=1e-3)
    assert shares[card["documents"][0][0]] == pytest.approx(max(shares))


def test_losses_are_those_of_emo_eval(written, finished_run, store, tmp_path):
    header, _ = read_page(written)
    keep = header["models"][0]["keep"]
    assert keep["keeps"] == [8, 6, 4, 3]
    figures = tmp_path / "eval.json"
    argv = ("eval", finished_run, "--data", store, "--windows", "4", "--keep", "4", "--keep", "3")
    argv += ("--method", "global")
    assert emo_here(*argv, "--json", figures) == 0
    theirs = json.loads(figures.read_text())["domains"]
    for m, name in enumerate(header["domains"]):
        assert keep["loss"][m][0] == pytest.approx(theirs[name]["loss_nats_per_token"], abs=2e-4)
        for at, kept in ((2, "4"), (3, "3")):
            loss = theirs[name]["keep"][kept]["loss_nats_per_token"]
            assert keep["loss"][m][at] == pytest.approx(loss, abs=2e-4)
    ranks = np.array(keep["rank"])
    np.testing.assert_array_equal(
        np.sort(ranks, axis=-1), np.broadcast_to(np.arange(7), ranks.shape)
    )
    cards = [card for layer in header["models"][0]["experts"] for card in layer]
    measured = [card["without"] for card in cards if card["without"]]
    assert measured and all(set(rises) <= set(header["domains"]) for rises in measured)


def test_pictures_show_the_numbers_of_the_page(written):
    header, _ = read_page(written)
    made = figures(header["domains"], header["models"])
    folder = written.parent / "figures"
    files = {f"{name}.{kind}" for name in made for kind in ("svg", "png")}
    assert {file.name for file in folder.iterdir()} == files and len(made) == 2 * 8 + 1
    for file in folder.glob("*.svg"):
        ElementTree.parse(file)
    first = header["models"][0]
    heat = made["a-emo_tiny-experts-layer-1"].axes[0].images[0].get_array()
    np.testing.assert_array_equal(heat, first["use"][1])
    loss_MK = np.array(first["keep"]["loss"])
    mean = made["keep"].axes[0].lines[-1].get_xydata()
    np.testing.assert_array_equal(mean[:, 0], first["keep"]["keeps"])
    np.testing.assert_allclose(mean[:, 1], (loss_MK - loss_MK[:, :1]).mean(axis=0))
    clusters = made["a-emo_tiny-document-clusters"].axes[0].images[0].get_array()
    np.testing.assert_allclose(clusters.sum(axis=1), 1)
    bare = [{**model, "keep": None} for model in header["models"]]
    assert figures([], bare) == {}  # without domains there is nothing to draw


def test_text_is_never_markup():
    nasty = ["</script><script>alert(1)</script>", "<!--", "\u2028", "&lt;", "\ud800", "\x00"]
    text = page_lib._json({"texts": nasty})
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode("utf-8")
    assert json.loads(text)["texts"] == nasty


def test_the_page_is_whole_and_fetches_nothing(written):
    text = written.read_text(encoding="utf-8")
    assert "{{" not in page_lib._template().replace("{{title}}", "").replace("{{data}}", "")
    assert len(re.findall(r"</script", text)) == len(re.findall(r"<script", text))
    assert "<style>" in text and text.count("</style") == 1
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(|fetch\(|import """, text)
    assert "default-src 'none'" in text


def test_layers_that_do_not_fit_are_left_out_and_named(finished_run, store, tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    argv = ("explore", finished_run, "--data", store, "--output", file, *SAMPLE)
    monkeypatch.setattr(page_lib, "_layers_that_fit", lambda view, budget: ([1], "layer 1 of 2"))
    assert emo_here(*argv, "--eval-windows", "0") == 0
    header, arrays = read_page(file)
    assert arrays["picks-0"].shape[1] == 1 and header["models"][0]["layers_here"] == [1]
    assert any("layer 1 of 2" in note for note in header["notes"])
    assert any("No losses were measured" in note for note in header["notes"])
    assert header["models"][0]["keep"] is None


def test_refusals(finished_run, store, tmp_path, capsys):
    there = tmp_path / "there.html"
    there.write_text("mine")
    out = tmp_path / "page.html"
    (tmp_path / "new").mkdir()
    for argv, said in (
        ((finished_run, "--output", there), "is there already"),
        ((finished_run,) * 3 + ("--output", out), "3 models: give one, or two"),
        ((finished_run, "--output", out, "--split", "tset"), "no split 'tset'"),
        ((finished_run, "--output", out, "--min-length", "9999"), "no document of at least 9999"),
        ((finished_run, "--output", out, "--figures", tmp_path), "is there already"),
        (
            (finished_run, "--output", tmp_path / "new/page.html", "--figures", tmp_path / "new"),
            "the page is to be there",
        ),
        (
            (finished_run, "--output", out, "--tokens", "8", "--min-length", "8"),
            "--clusters 32: must",
        ),
    ):
        assert emo_here("explore", *argv, "--data", store) == 2
        assert said in capsys.readouterr().err
        assert not out.exists() and there.read_text() == "mine"


def test_another_tokenizer_is_refused(finished_run, store, tmp_path, capsys):
    """Of the second model, too: nothing is written."""
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    shutil.rmtree(other / "tokenizer")
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl")
    argv = ("tokenizer", "train", corpus, "--vocab-size", 259, "--output", other / "tokenizer")
    assert emo_here(*argv) == 0
    out = tmp_path / "page.html"
    argv = ("explore", finished_run, other, "--data", store, "--output", out, *SAMPLE)
    assert emo_here(*argv, "--eval-windows", "0", "--figures", tmp_path / "figures") == 2
    said = capsys.readouterr().err
    assert "tokenizer" in said and str(store) in said and said.count("emo: ") == 1
    assert not out.exists() and not (tmp_path / "figures").exists()


@pytest.mark.system
def test_layers_that_fit_are_found_and_the_limit_is_kept(finished_run, store, tmp_path, capsys):
    argv = ("explore", finished_run, "--data", store, *SAMPLE, "--eval-windows", "0")
    assert emo_here(*argv, "--output", tmp_path / "all.html") == 0
    size = (tmp_path / "all.html").stat().st_size
    settings = {"token_clusters": 4, "eval_windows": 0}
    sample = SampleSettings(tokens=1500, min_length=8)
    out = tmp_path / "page.html"
    limit = size - 500  # of about 4 kB for a layer
    explore(
        [str(finished_run)], str(store), out, sample, ExploreSettings(**settings, max_bytes=limit)
    )
    header, arrays = read_page(out)
    assert out.stat().st_size <= limit and arrays["picks-0"].shape[1] == 1
    assert header["models"][0]["layers_here"] == [1] and any(
        "layers 1 of 2" in note for note in header["notes"]
    )
    out.unlink()
    with pytest.raises(UsageError, match=r"with one layer's picks; give fewer --tokens"):
        small = ExploreSettings(**settings, max_bytes=50_000)
        explore([str(finished_run)], str(store), out, sample, small, pictures=tmp_path / "figures")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.html"]


@pytest.mark.system
def test_a_store_without_domains_is_one_of_all_documents(finished_run, tmp_path):
    corpus = runs.write_corpus(tmp_path / "corpus.jsonl")
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    corpus.write_text("".join(json.dumps({"text": r["text"]}) + "\n" for r in records))
    argv = ("prepare", corpus, "--output", tmp_path / "store", "--tokenizer", "bytes")
    assert emo_here(*argv) == 0
    out = tmp_path / "page.html"
    argv = ("explore", finished_run, "--data", tmp_path / "store", "--output", out, *SAMPLE)
    assert emo_here(*argv, *LOSSES) == 0
    header, arrays = read_page(out)
    (model,) = header["models"]
    assert header["domains"] == ["all documents"] and not arrays["doc_domain"].any()
    assert "names no domains" in header["notes"][0]
    assert model["token_clusters"]["metrics"]["nmi"] is None
    assert model["token_clusters"]["metrics"]["purity"] is None
    assert len(model["keep"]["loss"]) == 1 and all(model["keep"]["loss"][0])
    assert any("all documents" in (c["without"] or {}) for layer in model["experts"] for c in layer)


@pytest.mark.system
def test_losses_stay_with_their_domains(finished_run, store, tmp_path, monkeypatch):
    """Where a domain of the store has no document in the sample."""
    out = tmp_path / "page.html"
    sample = SampleSettings(tokens=1500, min_length=8)
    whole = sample_documents(TokenStore.open(store), "test", tokens=1500, min_length=8)
    law = [n for n, of in enumerate(whole.domain_ids) if of == 1]
    about = {**whole.about, "missing": ["cooking"]}
    part = Sample([whole.documents[n] for n in law], np.zeros(len(law), np.int32), ("law",), about)
    settings = ExploreSettings(token_clusters=4, eval_windows=4, ablate=1)
    losses = []
    for documents in (whole, part):
        monkeypatch.setattr(exploring, "sample_of", lambda *_, chosen=documents: chosen)
        explore([str(finished_run)], str(store), out, sample, settings)
        header, _ = read_page(out)
        losses.append(header["models"][0]["keep"])
        out.unlink()
    assert header["domains"] == ["law"] and "cooking" in header["notes"][0]
    assert losses[1]["loss"] == losses[0]["loss"][1:]
    assert losses[1]["rank"] == [of_layer[1:] for of_layer in losses[0]["rank"]]


@pytest.mark.system
def test_what_a_layer_does_not_have_has_no_card(finished_run, store, tmp_path):
    """Of a Hugging Face folder, which is a model as well."""
    folder, out = tmp_path / "module", tmp_path / "page.html"
    argv = ("select", finished_run, "--data", store, "--keep-per-layer", "8,5", "--output", folder)
    assert emo_here(*argv, "--method", "global") == 0
    argv = ("explore", folder, "--data", store, "--output", out, *SAMPLE, *LOSSES)
    assert emo_here(*argv) == 0
    (model,) = read_page(out)[0]["models"]
    assert [len(layer) for layer in model["experts"]] == [7, 4]
    assert not np.array(model["picked"])[1, :, 4:].any()


def test_what_a_killed_one_left_is_removed(finished_run, store, tmp_path):
    left = tmp_path / f".page.html.{'0' * 16}.partial"
    (left / "0/probs").mkdir(parents=True)
    argv = ("explore", finished_run, "--data", store, "--output", tmp_path / "page.html", *SAMPLE)
    assert emo_here(*argv, "--eval-windows", "0") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]

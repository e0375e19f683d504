"""The explorer's page in a real browser, by mouse and by keyboard, against the numbers in it."""

import json
import math
import os
import re
from pathlib import Path

import browsing
import numpy as np
import pytest
import runs
from browsing import faults, follow, overflow, tab
from pages import read_page

pytestmark = pytest.mark.system

VIEWS = ("overview", "clusters", "experts", "documents", "keep", "domains")
SAMPLE = ("--split", "train", "--tokens", "6000", "--min-length", "8", "--clusters", "6")
# What a text may hold: markup, hidden and reordering characters, our own placeholders.
HOSTILE = (
    *(
        "<script>alert(1)</script>",
        "</script>",
        "<img src=x onerror=alert(2)>",
        "<!--",
        "&lt;b&gt;",
    ),
    *("\u202e reversed", "\u2066", "\u200b", "\ufeff", "\x00", "\x1b[31m", "\u2028", "\u00ad"),
    *(
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "שלום",
        "a\u0301\u0301",
        "\u3164",
        "\U000e0041",
    ),
    *("{{data}}", "{{js}}", "{{title}}", "javascript:alert(3)", "`${alert(4)}`", "\r\n", "\t"),
)
FIND_HIDDEN = r"""() => {
  const odd = /[\u202a-\u202e\u2066-\u2069\u200b\ufeff\u0000\u001b\u00ad\u3164\u2028]/;
  const accept = (n) =>
    n.parentElement.closest('script') ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT, accept);
  const texts = [];
  while (walk.nextNode()) texts.push(walk.currentNode.data);
  for (const e of document.querySelectorAll('[title],[aria-label]'))
    for (const name of ['title', 'aria-label']) texts.push(e.getAttribute(name) ?? '');
  return texts.filter((text) => odd.test(text));
}"""


@pytest.fixture(scope="module")
def browser():
    with browsing.browser() as started:
        yield started


@pytest.fixture(scope="module")
def page_of_two(finished_run, store, tmp_path_factory):
    """An EMO and a standard MoE of three layers on the same documents."""
    folder = tmp_path_factory.mktemp("two")
    fields = {
        "train__steps": 6,
        "train__eval_every": 6,
        "train__batch_size": 8,
        "model__num_layers": 3,
    }
    sizes = ("min_size", "max_size", "eval_size")
    standard = {"moe__pool__kind": "none", "name": "standard"}
    standard |= {f"moe__pool__{size}": 0 for size in sizes}
    assert runs.emo_here(*runs.train_argv(store, folder / "standard", **fields, **standard)) == 0
    file = folder / "page.html"
    argv = ("explore", finished_run, folder / "standard", "--data", store, "--output", file)
    assert runs.emo_here(*argv, *SAMPLE, "--eval-windows", "8", "--ablate", "1") == 0
    return file


@pytest.fixture
def opened(browser, page_of_two):
    with tab(browser, page_of_two) as page:
        yield page


def selected(page):
    return page.evaluate("document.querySelector('[role=tab][aria-selected=true]').id.slice(4)")


def says(page):
    """(documents, tokens) that the filters leave, as the page says it."""
    found = re.findall(r"([\d,]+) of", page.text_content(".filter-says"))
    return tuple(int(number.replace(",", "")) for number in found)


def edited(page, file, change):
    """A page with another header, which `change` makes of the one it has."""
    text = page.read_text(encoding="utf-8")
    before, header, after = re.split(r'(?<=id="data">)(.*?)(?=</script>)', text, maxsplit=1)
    header = json.loads(header)
    change(header)
    written = json.dumps(header, allow_nan=False).replace("<", "\\u003c")
    file.write_text(before + written + after, encoding="utf-8")
    return header


def percent(share):
    """As the page writes it."""
    hundredths = 100 * share
    if 0 < hundredths < 9.95:
        return f"{hundredths:.1f} %"
    return f"{math.floor(hundredths + 0.5)} %"  # JavaScript rounds halves up, Python to even


def signed(rise):
    """As the page writes it: with a real minus sign, and none at zero."""
    text = f"{rise:+.3f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def test_first_paint(browser, page_of_two):
    with tab(browser, page_of_two) as page:
        entries = page.evaluate("performance.getEntriesByType('paint').map((e) => e.startTime)")
        assert max(entries) < 1000
        assert page.title() and page.get_attribute("html", "lang") == "en"


def test_views_by_click_and_by_key(opened):
    for view in VIEWS:
        opened.click(f"#tab-{view}")
        assert selected(opened) == view and opened.is_visible(f"#panel-{view} h2")
    opened.focus("#tab-domains")
    for key, view in (("ArrowRight", "overview"), ("End", "domains"), ("ArrowLeft", "keep")):
        opened.keyboard.press(key)
        assert selected(opened) == view
        assert opened.evaluate("document.activeElement.id") == f"tab-{view}"
    for number, view in enumerate(VIEWS, 1):
        opened.keyboard.press(str(number))
        assert selected(opened) == view
    opened.keyboard.press("?")
    assert opened.evaluate("document.getElementById('help-dialog').open")
    opened.keyboard.press("Escape")
    assert not opened.evaluate("document.getElementById('help-dialog').open")
    opened.keyboard.press("/")
    assert opened.evaluate("document.activeElement.id") == "q"


def test_heat_map_layer_slider_and_card(opened, page_of_two):
    header, arrays = read_page(page_of_two)
    follow(opened, "view=experts")
    opened.locator("#panel-experts input[type=range]").first.focus()
    opened.keyboard.press("End")
    assert "layer=2" in opened.url  # the second model has three layers, the first two
    opened.keyboard.press("Home")
    assert "layer=0" in opened.url
    opened.locator("#panel-experts canvas").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        opened.keyboard.press(key)
    said = opened.locator("#panel-experts .heat-says").first.text_content()
    use = header["models"][0]["use"][0][1][2]
    assert said.startswith(f"Expert 2, {header['domains'][1]}")
    assert f"mean probability {percent(use)}" in said
    opened.keyboard.press("Enter")
    assert "expert=0.0.2" in opened.url and opened.is_visible("#panel-experts .card")
    opened.click("#panel-experts .card button:has-text('Filter tokens')")
    assert "picks=0.0.2" in opened.url
    picked_N = (arrays["picks-0"][:, 0] == 2).any(axis=1)
    documents_N = np.searchsorted(arrays["doc_ends"], np.arange(len(picked_N)), side="right")
    assert says(opened) == (len(np.unique(documents_N[picked_N])), picked_N.sum())
    opened.locator("#panel-experts button:has-text('Show as table')").first.click()
    rows = opened.locator("#panel-experts .heat table tbody tr")
    assert rows.count() == header["models"][0]["routed"]


def test_keep_slider_says_who_stays(opened, page_of_two):
    header, _ = read_page(page_of_two)
    keep, model = header["models"][0]["keep"], header["models"][0]
    follow(opened, "view=keep&domain=law&keep=4")
    slider = opened.locator("#panel-keep input[type=range]")
    assert slider.input_value() in ("3", "4")  # the place of four, from 0 or from 1
    slider.focus()
    opened.keyboard.press("ArrowLeft")
    assert "keep=3" in opened.url
    law, at = header["domains"].index("law"), keep["keeps"].index(3)
    rise = keep["loss"][law][at] - keep["loss"][law][0]
    figures = opened.locator("#panel-keep .multiples figure").nth(law).text_content()
    assert f"{rise:+.3f}".replace("-", "−") in figures.replace("-", "−")
    # With the shared expert, the first two of each layer by the order of law.
    opened.locator("#panel-keep canvas").first.focus()
    for expert in range(model["routed"]):
        text = opened.locator("#panel-keep .heat-says").first.text_content()
        stays = keep["rank"][0][law][expert] < 3 - model["shared"]
        assert ("stays" in text) == stays and ("goes" in text) != stays, text
        opened.keyboard.press("ArrowRight")
    opened.click("#panel-keep .multiples button:has-text('cooking')")
    assert "domain=cooking" in opened.url


def test_reader_by_keys_pointer_and_click(opened, page_of_two):
    _, arrays = read_page(page_of_two)
    follow(opened, "view=documents&doc=7")
    assert 0 < opened.locator(".t").count() <= 1200  # a page of it, for each model
    opened.locator(".reader").first.focus()
    for key in ("ArrowRight", "ArrowRight"):
        opened.keyboard.press(key)
    assert opened.locator(".t.now").count() == 2
    at = int(opened.locator(".t.now").first.get_attribute("data-j"))
    token = arrays["doc_ends"][6] + at
    details = opened.text_content(".token-details")
    for n in (0, 1):
        for layer, picks in enumerate(arrays[f"picks-{n}"][token]):
            for expert, prob in zip(picks, arrays[f"probs-{n}"][token, layer], strict=True):
                assert f"{expert}{100 * int(prob) / 255:.0f}%" in details
    opened.wait_for_function("document.getElementById('live').textContent.includes('cluster')")
    opened.keyboard.press("Enter")
    assert f"tokencluster=0.{arrays['tcluster-0'][token]}" in opened.url
    opened.keyboard.press("Enter")
    assert "tokencluster" not in opened.url
    opened.locator(".reader").nth(1).locator(".t").nth(4).hover()
    assert opened.locator(".t.now").first.get_attribute("data-j") == "4"
    opened.click("#panel-documents .segmented span:text-is('expert')")
    opened.locator(".reader").nth(1).locator(".t").nth(6).click()
    assert "picks=1." in opened.url
    before = opened.url
    opened.keyboard.press("n")
    assert opened.url != before


def test_filters_leave_what_the_data_has_and_are_fast(opened, page_of_two):
    header, arrays = read_page(page_of_two)
    ends = arrays["doc_ends"].astype(int)
    domain_D = arrays["doc_domain"]
    sizes_D = np.diff(ends, prepend=0)
    documents_N = np.repeat(np.arange(len(ends)), sizes_D)
    texts = np.array(header["texts"], dtype=object)
    text_D = ["".join(texts[ids]).lower() for ids in np.split(arrays["tokens"], ends[:-1])]
    law = domain_D[documents_N] == header["domains"].index("law")
    word = np.array(["statute" in text for text in text_D])[documents_N]
    group = arrays["tcluster-1"] == 2
    cases = {
        "domain=law": law,
        "q=statute": word,
        "tokencluster=1.2": group,
        "picks=1.2.3": (arrays["picks-1"][:, 2] == 3).any(axis=1),
        "doccluster=0.1": (arrays["dcluster-0"] == 1)[documents_N],
        "q=statute&domain=law&tokencluster=1.2": word & law & group,
    }
    for link, mask in cases.items():
        took, waited = [], []
        for _ in range(10):  # other tests share the machine
            follow(opened, "view=documents")
            assert says(opened) == () and opened.text_content(".filter-says") == "no filter"
            follow(opened, f"view=documents&{link}")
            opened.wait_for_selector(".filter-says[data-drawn-ms]")
            took.append(float(opened.get_attribute(".filter-says", "data-ms")))
            waited.append(float(opened.get_attribute(".filter-says", "data-drawn-ms")))
            if waited[-1] < 100:
                break
        assert says(opened) == (len(np.unique(documents_N[mask])), mask.sum()), link
        assert min(took) < 100 and min(waited) < 100, (link, took, waited)
    opened.click("#filters button:has-text('Clear all')")
    assert "tokencluster" not in opened.url and "q=" not in opened.url


def test_search(opened):
    opened.fill("#q", "statute")
    opened.wait_for_selector("#results:not([hidden])")
    assert opened.locator("#results a").count() > 0
    opened.keyboard.press("Escape")
    assert opened.is_hidden("#results")
    opened.focus("#q")
    opened.keyboard.press("Enter")
    assert "q=statute" in opened.url and opened.locator(".filter-chip").count() == 1
    opened.click(".filter-chip button")
    assert "q=" not in opened.url


def test_links_back_and_forward(browser, page_of_two):
    link = "view=documents&doc=12&token=9&layer=1&color=expert&domain=cooking&theme=dark&models=b"
    with tab(browser, page_of_two, link) as page:
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.locator(".reader").count() == 1
        assert page.locator(".t.now").get_attribute("data-j") == "9"
        page.keyboard.press("3")
        page.keyboard.press("2")
        page.go_back()
        assert selected(page) == "experts"
        page.go_back()
        assert selected(page) == "documents" and "doc=12" in page.url
        page.go_forward()
        assert selected(page) == "experts"
        for bad in (
            *(
                "view=nothing",
                "layer=99",
                "expert=7.7.7",
                "doc=100000",
                "domain=nowhere",
                "keep=1e9",
            ),
            *("q=%E0%A4%A", "theme=<script>alert(1)</script>", "picks=-1", "__proto__=1"),
        ):
            follow(page, bad)
            assert page.is_visible("#notice") and page.text_content("#notice"), bad
            assert page.locator("[role=tabpanel]:not([hidden]) h2").count() == 1
        follow(page, "")
        assert selected(page) == "overview" and page.is_hidden("#notice")


def test_themes(browser, page_of_two):
    def colour(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    with tab(browser, page_of_two) as page:
        light = colour(page)
        page.click("#theme")
        assert colour(page) != light and "theme=dark" in page.url
        page.click("#theme")
        assert colour(page) == light
    with tab(browser, page_of_two, color_scheme="dark") as page:
        assert colour(page) != light


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, page_of_two, theme):
    links = (
        *(f"view={view}" for view in VIEWS),
        *("view=clusters&tokencluster=0.1&domain=law", "view=experts&expert=0.1.5&picks=0.1.5"),
        *(
            "view=documents&color=expert&doc=3&token=4&labels=on&q=the",
            "view=keep&domain=law&keep=4",
        ),
        *("view=documents&color=probability&doc=3&token=4", "layer=99"),
    )
    with tab(browser, page_of_two, bypass_csp=True) as page:
        found = {}
        for link in links:
            follow(page, f"{link}&theme={theme}")
            found[link] = faults(page)
        page.fill("#q", "court")
        page.wait_for_selector("#results:not([hidden])")
        found["search"] = faults(page)
        page.keyboard.press("Escape")
        page.focus("#tab-experts")
        page.keyboard.press("?")
        found["help"] = faults(page)
    assert not {link: of for link, of in found.items() if of}


@pytest.mark.parametrize(
    ("width", "theme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")]
)
def test_nothing_is_wider_than_the_window(browser, page_of_two, tmp_path, width, theme):
    """With pictures to look at: in EMO_SHOTS, if that is set."""
    shots = Path(os.environ.get("EMO_SHOTS", tmp_path))
    shots.mkdir(exist_ok=True, parents=True)
    more = {"experts": "&expert=0.1.3", "documents": "&doc=3&token=5", "keep": "&domain=law"}
    with tab(browser, page_of_two, width=width) as page:
        for view in VIEWS:
            follow(page, f"view={view}&theme={theme}{more.get(view, '')}")
            assert overflow(page) <= 0, view
            shot = shots / f"{view}-{width}-{theme}.png"
            page.screenshot(path=shot, full_page=True)
            assert shot.stat().st_size > 5000


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A page of texts, domains and names that want to be more than text."""
    folder = tmp_path_factory.mktemp("hostile")
    draw = np.random.default_rng(0)
    records = []
    for n in range(600):
        words = draw.choice([*HOSTILE, *runs.WORDS["law"].split()], size=30)
        domain = ("law", "<img src=x onerror=alert(5)>", "\u202edomain")[n // 200]
        records.append({"text": " ".join(words), "id": f"doc-{n}", "domain": domain})
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    argv = ("tokenizer", "train", corpus, "--output", folder / "bpe", "--vocab-size", 600)
    assert runs.emo_here(*argv) == 0
    argv = ("prepare", corpus, "--output", folder / "store", "--tokenizer", folder / "bpe")
    assert runs.emo_here(*argv) == 0
    fields = {
        "train__steps": 4,
        "train__eval_every": 4,
        "train__batch_size": 8,
        "model__vocab_size": 600,
    }
    name = {"name": "<img_src=x_onerror=alert(6)>"}
    run = folder / "run"
    assert runs.emo_here(*runs.train_argv(folder / "store", run, **fields, **name)) == 0
    file = folder / "page.html"
    argv = ("explore", run, "--data", folder / "store", "--output", file, "--eval-windows", "4")
    assert runs.emo_here(*argv, "--tokens", "3000", "--min-length", "8", "--clusters", "4") == 0
    return file


def test_hostile_texts_stay_texts(browser, hostile):
    header, _ = read_page(hostile)
    assert any("\u202e" in text for text in header["texts"])
    with tab(browser, hostile) as page:
        links = [f"view={view}" for view in VIEWS]
        links += [f"view=documents&doc={n}&color=expert&token=2" for n in range(4)]
        links += ["view=experts&expert=0.0.1&rows=tokenclusters", "view=keep&keep=4"]
        for link in links:
            follow(page, link)
            assert page.locator("main img, main b, main a[href^=javascript]").count() == 0
            assert (
                page.evaluate("[...document.scripts].filter((s) => !s.type.includes('/')).length")
                <= 1
            )
            hidden = page.evaluate(FIND_HIDDEN)
            assert not hidden, (link, hidden[:3])
        follow(page, "view=documents&q=%E2%80%AE")
        assert page.locator(".t.found").count() > 0 and "⟨U+202E⟩" in page.text_content("main")
        page.fill("#q", "<script>")
        page.wait_for_selector("#results:not([hidden])")
        assert page.locator("#results mark").first.text_content() == "<script>"


def test_a_store_without_domains(browser, finished_run, tmp_path):
    """Works, and says what is missing."""
    corpus = tmp_path / "corpus.jsonl"
    lines = runs.write_corpus(corpus).read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if k != "domain"} for line in lines]
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    argv = ("prepare", corpus, "--output", tmp_path / "store", "--tokenizer", "bytes")
    assert runs.emo_here(*argv) == 0
    file = tmp_path / "page.html"
    argv = ("explore", finished_run, "--data", tmp_path / "store", "--output", file)
    assert runs.emo_here(*argv, "--tokens", "2000", "--clusters", "4", "--eval-windows", "4") == 0
    with tab(browser, file) as page:
        for view in VIEWS:
            page.click(f"#tab-{view}")
            assert page.is_visible(f"#panel-{view} h2")
        follow(page, "view=overview")
        assert "names no domains" in page.inner_text("#panel-overview .notes")
        assert page.locator("#filters select").count() == 0
        follow(page, "view=keep")
        assert page.inner_text("#panel-keep .multiples figcaption") == "all documents"
        assert re.fullmatch(r"[+\u2212]?\d\.\d{3}", page.inner_text("#panel-keep .figures"))
        assert len(page.get_attribute("#panel-keep .multiples polyline", "points").split()) > 2
        follow(page, "view=domains")
        assert "none to compare" in page.inner_text("#panel-domains")
        assert page.locator("#panel-domains canvas").count() == 0
        # A link that filters by it says so, and can be undone.
        follow(page, "view=documents&domain=all+documents")
        page.click(".filter-chip button")
        assert "domain=" not in page.url


def test_what_was_not_measured_and_layers_of_fewer_experts(browser, page_of_two, tmp_path):
    """The first model loses two experts of layer 1, and all losses and ranks of law."""

    def change(header):
        law, cooking = map(header["domains"].index, ("law", "cooking"))
        header["domains"][law] = "constructor"  # what every object has in a script
        first, second = header["models"]
        gone = first["routed"] - 5
        del first["experts"][1][5:]
        first["load"][1][5:] = [0] * gone
        for row in (*first["use"][1], *first["picked"][1]):
            row[5:] = [None] * gone
        first["experts"][0][2]["without"] = {"cooking": 0.5}
        rank = first["keep"]["rank"]
        places = rank[1][cooking][:5]
        rank[1][cooking] = [sorted(places).index(place) for place in places] + [None] * gone
        for row in rank:
            row[law] = None
        first["keep"]["loss"][law] = [None] * len(first["keep"]["keeps"])
        second["keep"]["loss"][law][-1] = None

    file = tmp_path / "edited.html"
    header = edited(page_of_two, file, change)
    law, cooking = map(header["domains"].index, ("constructor", "cooking"))
    first, second = header["models"]
    routed = first["routed"]
    with tab(browser, file) as page:
        # The mean is that of cooking: law is not measured at every keep, or at none.
        text = page.inner_text("#panel-overview .side")
        assert "mean over the 1 of 2 domains measured at every number of experts" in text
        curve = page.get_attribute("#panel-overview .line-chart", "aria-label")
        for model in (first, second):
            of = model["keep"]["loss"][cooking]
            rises = [signed(loss - of[0]) for loss in of]
            keeps = model["keep"]["keeps"]
            assert ", ".join(f"{k} experts {v}" for k, v in zip(keeps, rises, strict=True)) in curve
        cells = page.locator("#panel-overview .facts tbody tr")
        assert cells.filter(has_text="Experts a layer").locator("td").first.inner_text() == (
            f"5–{routed} + 1"
        )

        follow(page, "view=keep&domain=constructor&keep=8")
        figures = page.locator("#panel-keep .multiples figure").nth(law).locator(".figures > span")
        assert figures.first.inner_text().endswith("–")
        page.click("#panel-keep summary:has-text('as a table')")
        rows = page.locator("#panel-keep details .numbers tbody tr")
        cells = rows.nth(law).locator("td").all_inner_texts()
        keeps = len(first["keep"]["keeps"])
        assert cells[:keeps] == ["–"] * keeps and cells[-1] == "–" and cells[keeps] == "0.000"
        assert "–" not in rows.nth(cooking).locator("td").all_inner_texts()
        strips = page.locator("#panel-keep .pair > .model")
        assert "No experts were ranked for this domain." in strips.nth(0).inner_text()
        assert not strips.nth(0).locator("canvas").is_visible()
        assert strips.nth(1).locator("canvas").is_visible()

        follow(page, "view=keep&domain=cooking&keep=8")
        said = strips.nth(0).inner_text()
        assert f"6–8 of 6–8 experts of a layer stay: 5–{routed} routed and 1 shared." in said
        assert "constructor" not in strips.nth(0).locator(".overlap").inner_text()
        strips.nth(0).locator("canvas").focus()
        for key in ("ArrowDown", "End"):
            page.keyboard.press(key)
        assert strips.nth(0).locator(".heat-says").inner_text() == "Layer 1 has no expert 6"
        page.keyboard.press("Enter")
        assert selected(page) == "keep"
        follow(page, "view=keep&domain=cooking&keep=4")
        assert "4 of 6–8 experts of a layer stay: 3 routed" in strips.nth(0).inner_text()
        layer_1 = strips.nth(0).locator(".heat table tbody td:nth-child(3)")
        strips.nth(0).locator("button:has-text('Show as table')").click()
        assert sum("stays" in text for text in layer_1.all_inner_texts()) == 3
        assert layer_1.nth(6).inner_text() == "–"

        follow(page, "view=experts&layer=1&expert=0.1.4&models=a")
        even = first["load"][1][4] * 5
        assert f"{even:.1f} times an even share" in page.inner_text("#panel-experts .card")
        page.click("#panel-experts .card button[aria-label='Next expert']")
        assert "expert=0.1.0" in page.url
        page.click("#panel-experts .card button[aria-label='Previous expert']")
        assert "expert=0.1.4" in page.url
        page.locator("#panel-experts canvas").first.focus()
        page.keyboard.press("End")
        assert page.inner_text("#panel-experts .heat-says").startswith("Expert 4, ")
        page.click("#panel-experts button:has-text('Show as table')")
        assert page.locator("#panel-experts .heat table tbody tr").count() == 5
        follow(page, "view=experts&expert=0.1.5")
        assert "expert “0.1.5”" in page.inner_text("#notice")
        follow(page, "view=experts&expert=0.0.2")
        rows = page.locator("#panel-experts .card .domain-table tbody tr")
        lost = rows.filter(has_text="cooking").locator("td").last
        assert lost.inner_text() == "+0.500"
        assert lost.locator(".more").evaluate("(bar) => bar.style.width") == "50%"
        assert rows.filter(has_text="constructor").locator("td").last.inner_text() == "–"

        follow(page, "view=domains&layer=1&models=a")
        head = page.inner_text("#panel-domains .domain-table thead")
        assert "at most 2.3" in head and "of 5;" in head


def test_typical_documents_say_what_their_number_is(opened, page_of_two):
    header, _ = read_page(page_of_two)
    for kind, what, text in (
        ("token", "share of its tokens", percent),
        ("document", "cosine", "{:.2f}".format),
    ):
        field = "tokencluster" if kind == "token" else "doccluster"
        follow(opened, f"view=clusters&kind={kind}&{field}=0.1")
        documents = header["models"][0][f"{kind}_clusters"]["clusters"][1]["documents"]
        shown = opened.locator("#panel-clusters .doc-links .num")
        assert shown.all_inner_texts() == [text(value) for _, value in documents]
        assert what in shown.first.get_attribute("title")


def test_a_damaged_page_says_so(browser, page_of_two, tmp_path):
    text = page_of_two.read_text(encoding="utf-8")
    file = tmp_path / "damaged.html"
    file.write_text(text.replace('id="bin-picks-0">', 'id="bin-picks-0">AAAA'), encoding="utf-8")
    with tab(browser, file, "view=documents") as page:
        assert "cannot be read" in page.text_content("#panel-documents")
        page.click("#tab-experts")
        assert page.is_visible("#panel-experts canvas")


# --- axes -----------------------------------------------------------------------------------------

RISES = (
    *([0, size / 3, size] for size in (1e-9, 1e-6, 1e-3, 0.004, 0.0101, 0.3, 1e3, 1e6)),
    *([0, 0, 0], [0, -1e-4, 0.004], [0, -0.02, 0.01], [0, -0.3, -0.4], [0, -5e6, 2e6]),
)


def marks(chart):
    """Numbers of an axis, from its texts: all different, and where they say."""
    found = chart.eval_on_selector_all(
        "text[text-anchor=end]",
        "all => all.map(t => [t.textContent, +t.getAttribute('y'), t.getBBox().x])",
    )
    values = [float(text.replace("−", "-")) for text, _, _ in found]
    assert len({text for text, _, _ in found}) == len(found) >= 3, found
    assert all(x >= 0 for _, _, x in found), found  # not cut off
    steps = np.diff(values)
    assert steps[0] > 0 and np.allclose(steps, steps[0], rtol=0.05), found
    ys = [y for _, y, _ in found]
    assert np.allclose(np.diff(ys), ys[1] - ys[0], atol=0.2)
    return values


def test_two_marks_of_an_axis_have_two_labels(browser, page_of_two, tmp_path):
    for number, rises in enumerate(RISES):
        file = tmp_path / f"{number}.html"

        def change(header, rises=rises):
            keep = header["models"][0]["keep"]
            header["models"] = header["models"][:1]
            rises = np.interp(np.linspace(0, 1, len(keep["keeps"])), [0, 0.5, 1], rises)
            keep["loss"] = [[2.5 + float(r) for r in rises] for _ in header["domains"]]

        header = edited(page_of_two, file, change)
        rises = np.array(header["models"][0]["keep"]["loss"][0]) - 2.5
        with tab(browser, file) as page:
            values = marks(page.query_selector("#panel-overview .line-chart"))
            assert 0 in values and max(values) >= max(rises) * 0.95
            assert min(values) - max(np.abs(values)) / 15 <= min(rises)
            for curve in ("rise", "loss"):
                follow(page, f"view=keep&curve={curve}")
                marks(page.query_selector("#panel-keep .line-chart"))


def test_a_scale_of_small_shares_has_different_ends(browser, page_of_two, tmp_path):
    for size in (1.0, 1e-4):

        def change(header, size=size):
            model = header["models"][0]
            model["use"] = (np.array(model["use"]) * size).tolist()
            header["models"] = [model]

        edited(page_of_two, tmp_path / f"{size}.html", change)
        with tab(browser, tmp_path / f"{size}.html", "view=experts") as page:
            ends = page.query_selector_all("#panel-experts .scale-ends span")
            texts = [end.text_content() for end in ends]
            assert len(set(texts)) == len(texts) == 3, texts
            assert texts[0] == "0 %" if size == 1 else texts[0].startswith("0.0")

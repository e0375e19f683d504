"""Charts and the explorer's pictures: names as they are, the page's colours, what is missing."""

import html
import re

import matplotlib.image
import numpy as np
import pytest

from emo_jax.explorer.figures import MOST_DOMAINS, figures
from emo_jax.report import charts, page

FORMULAS = ["$x_{ · ^$", "$b$", "#d55e00"]  # broken, whole, and what our own colours look like


def _chart():
    figure, (ax,) = charts.new()
    series = {name: ([1, 2], [3.0, n]) for n, name in enumerate(FORMULAS)}
    charts.lines(ax, series, x="$b$ along x", y="$x_{ · ^$ along y")
    return figure


def _heat(values):
    figure, (ax,) = charts.new()
    charts.heat_map(ax, values, FORMULAS, columns=FORMULAS, x="$b$ along x", label="$x_{ · ^$ bar")
    return figure


def _shown(svg):
    """Every piece of text, with its tag."""
    found = re.findall(r"(<text[^>]*>)([^<]*)</text>", svg)
    return [(tag, html.unescape(name)) for tag, name in found]


@pytest.mark.parametrize("draw", [_chart, lambda: _heat(np.eye(3))])
def test_names_are_no_formulas(draw):
    svg = charts.inline_svg(draw(), "says")
    shown = [name for _, name in _shown(svg)]
    assert set(FORMULAS) <= set(shown) and "$b$ along x" in shown
    assert any(name.startswith("$x_{ · ^$ ") for name in shown)
    assert "italic" not in svg


def test_inline_charts_have_the_colours_of_the_page():
    svg = charts.inline_svg(_chart(), "says")
    for tag, name in _shown(svg):
        assert "fill: var(--ink)" in tag, name  # without a fill it is black
    tags = "".join(re.findall(r"<[^>]*>", svg))
    colours = re.findall(r"(?:fill|stroke|color): *([^;\"]+)", tags)
    assert {"var(--c0)", "var(--c1)", "var(--c2)", "var(--ink)", "var(--grid)"} <= set(colours)
    assert all(colour == "none" or colour.startswith("var(--") for colour in colours)
    assert not re.search(r"#[0-9a-f]{6}\b", tags)


def test_pictures_are_the_same_every_time(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        charts.write_figures({"chart": _chart()}, tmp_path / folder)
    for name in ("chart.svg", "chart.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert matplotlib.image.imread(tmp_path / "a" / "chart.png").shape[:2] == (560, 1280)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_a_heat_map_of_nothing(value):
    values = np.full((3, 3), value)
    assert "<svg" in charts.inline_svg(_heat(values), "says")


# --- of the explorer -----------------------------------------------------------------------------


def _model(name="m$b$", domains=3, layers=2, routed=4):
    """Layer 1 lacks the last expert; the last domain has no token, and one loss too few."""
    use = np.random.default_rng(0).dirichlet(np.ones(routed), (layers, domains)).round(5).tolist()
    entropy = [[1 + layer + m / 100 for m in range(domains)] for layer in range(layers)]
    experts = [[layer + m for m in range(domains)] for layer in range(layers)]
    similarity = np.ones((layers, domains, domains)).tolist()
    for m in range(domains):
        use[1][m][-1] = 0.0
    for layer in range(layers):
        use[layer][-1] = [None] * routed
        entropy[layer][-1] = experts[layer][-1] = None
        similarity[layer][-1] = [None] * domains
    clusters = {"clusters": [{"domains": [1] * domains, "label": "$x_{ · ^$"}]}
    loss = [[1.0, 1.0 + m, 1.0 + 2 * m] for m in range(domains - 1)] + [[None, 1.0, 2.0]]
    return {
        "name": name,
        "layers": layers,
        "experts": [[{}] * routed, [{}] * (routed - 1)],
        "use": use,
        "similarity": similarity,
        "domain_entropy": entropy,
        "domain_experts": experts,
        "token_clusters": clusters,
        "document_clusters": clusters,
        "keep": {"keeps": [8, 4, 2], "loss": loss},
    }


def _heat_of(figure):
    """What a picture shows; NaN where it is blank."""
    return figure.axes[0].images[0].get_array().filled(np.nan)


def _nulls(values):
    return np.array(values, float)


def test_what_is_missing_is_blank(tmp_path):
    model = _model()
    made = figures(["a", "b", "c"], [model])
    of_layers = [f"{of}-layer-{n}" for of in ("experts", "similarity") for n in range(2)]
    kinds = ["token-clusters", "document-clusters", "entropy", "experts-used", *of_layers]
    assert set(made) == {*(f"m_b_-{kind}" for kind in kinds), "keep"}
    for kind, wanted in (
        ("entropy", _nulls(model["domain_entropy"]).T),
        ("experts-used", _nulls(model["domain_experts"]).T),
        ("experts-layer-1", _nulls(model["use"][1])[:, :3]),
        ("similarity-layer-0", _nulls(model["similarity"][0])),
    ):
        shown = _heat_of(made[f"m_b_-{kind}"])
        assert np.isnan(shown).any() and not np.isnan(shown).all()
        np.testing.assert_array_equal(shown, wanted)
    assert made["m_b_-entropy"].axes[0].get_xlabel() == "layer"
    assert "bits" in made["m_b_-entropy"].axes[1].get_ylabel()
    charts.write_figures(made, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(made)


def _keep_lines(ax):
    return [line.get_ydata().tolist() for line in ax.lines]


def test_the_mean_is_over_domains_measured_at_every_keep():
    """The domain that lacks a number would have made the mean jump."""
    (ax,) = figures(["a", "b", "c"], [_model()])["keep"].axes
    assert _keep_lines(ax) == [[0, 0, 0], [0, 1, 2], [0, 0.5, 1]]
    says = [text.get_text() for text in ax.get_legend().get_texts()]
    assert says == ["mean of 2 domains", "each domain"]
    one = _model()
    one["keep"]["loss"][1][2] = None
    (ax,) = figures(["a", "b", "c"], [one])["keep"].axes
    assert ax.get_legend().get_texts()[0].get_text() == "mean of 1 domain"


def test_models_without_losses_have_no_curve():
    none, unmeasured, whole = _model("none"), _model("unmeasured"), _model("whole")
    none["keep"] = None
    unmeasured["keep"]["loss"] = [[None] * 3] * 3
    assert "keep" not in figures(["a", "b", "c"], [none, unmeasured])
    (ax,) = figures(["a", "b", "c"], [unmeasured, whole])["keep"].axes
    assert ax.get_title() == "whole"


def test_the_curve_has_the_style():
    figure = figures(["a", "b", "c"], [_model("$x_{ · ^$")])["keep"]
    svg = charts.inline_svg(figure, "says")
    assert "$x_{ · ^$" in [name for _, name in _shown(svg)]
    assert all("fill: var(--ink)" in tag for tag, _ in _shown(svg))
    assert not re.search(r"#[0-9a-f]{6}\b", "".join(re.findall(r"<[^>]*>", svg)))


def test_domains_that_are_cut_are_counted():
    count = MOST_DOMAINS + 5
    made = figures([f"domain {m}" for m in range(count)], [_model("m", domains=count)])
    made.pop("keep")
    for name, figure in made.items():
        said = f"first {MOST_DOMAINS} of {count} domains"
        assert figure.axes[0].get_xlabel().endswith(said), name
        assert MOST_DOMAINS in _heat_of(figure).shape and count not in _heat_of(figure).shape
    # Of all: a curve has no rows to cut.
    (ax,) = figures([f"domain {m}" for m in range(count)], [_model("m", domains=count)])[
        "keep"
    ].axes
    assert ax.get_legend().get_texts()[0].get_text() == f"mean of {count - 1} domains"


def test_names_that_begin_alike_do_not_look_alike():
    names = [f"www.a-very-long-name-of-a-site.example/{n}" for n in range(3)]
    shown = charts.short_names([*names, "law", "law", names[0]], 24)
    assert len(set(shown)) == 6 and all(len(text) <= 28 for text in shown)
    assert shown[0].startswith("www.a-very") and shown[0].endswith("ample/0")
    assert shown[3:5] == ["law", "law (2)"]
    assert charts.short_names(["law", names[0]], 24) == ["law", charts.short(names[0])]


def test_a_line_of_a_report_is_not_lost_to_one_of_a_name_that_begins_alike():
    names = [f"www.a-very-long-name-of-a-site.example.org/{n}" for n in range(3)]
    svg = page._line_chart({name: ([1, 2], [3.0, n]) for n, name in enumerate(names)}, "loss")
    assert len({name for _, name in _shown(svg) if "www.a" in name}) == 3

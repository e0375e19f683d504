"""The report says what the run has logged, and takes nothing of a run for markup."""

import html
import json
import re
import shutil
import statistics

import browsing
import pytest
import runs
from browsing import faults, overflow, tab

from emo_jax.report.page import MARK, page
from emo_jax.report.run import read_run
from emo_jax.run.goodput import GOODPUT_FILE
from emo_jax.run.metrics_file import METRICS_FILE

WIDTHS = [(1280, "light"), (1280, "dark"), (390, "light")]


@pytest.fixture(scope="module")
def keeping(store, tmp_path_factory, env):
    """The workdir of a run that measured what fewer experts lose."""
    workdir = tmp_path_factory.mktemp("keeping") / "run"
    fields = {"train__steps": 6, "train__eval_every": 3, "train__eval_keep": "(4,)"}
    done = runs.emo(runs.train_argv(store, workdir, **fields), env)
    assert done.returncode == 0, done.stderr
    return workdir


def _rows(text, section):
    """Cells of the first table of a section."""
    body = re.search(rf'<section id="{section}".*?</section>', text, re.S)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body.split("<table>")[1], re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return [[html.unescape(cell) for cell in row] for row in cells]


def _number(cell):
    return float(cell.replace("−", "-"))


def test_the_numbers_are_those_of_the_log(keeping, capsys):
    assert runs.emo_here("report", keeping) == 0
    assert "report.html: step 6" in capsys.readouterr().out
    text = (keeping / "report.html").read_text(encoding="utf-8")
    records = [json.loads(line) for line in (keeping / METRICS_FILE).read_text().splitlines()]
    last = {name: value for record in records for name, value in record.items()}
    tiles = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert tiles["steps"] == "6 of 6" and tiles["tokens"] == f"{6 * 4 * 64:,}"
    assert tiles["training loss"] == f"{last['ce_loss']:.4f}"
    assert tiles["held-out loss, pool of 4"] == f"{last['heldout_loss (pool=4)']:.4f}"
    speeds = [r["tokens_per_second"] for r in records if r.get("tokens_per_second")]
    assert tiles["tokens/s, median"] == f"{statistics.median(speeds):,.0f}"
    evals = [record for record in records if "heldout_loss" in record]
    titles, *rows = _rows(text, "domains")
    assert titles == ["domain", "first", "last", "change"] and len(rows) == 2
    for name, first, now, change in rows:
        values = [record[f"heldout_loss/{name}"] for record in evals]
        assert (first, now) == (f"{values[0]:.4f}", f"{values[-1]:.4f}")
        assert _number(change) == pytest.approx(values[-1] - values[0], abs=1e-4)
    titles, *rows = _rows(text, "keep")
    assert titles == ["domain", "keep 4"] and [row[0] for row in rows] == ["cooking", "law", "mean"]
    for name, rise in rows[:-1]:
        assert _number(rise) == pytest.approx(last[f"heldout_rise/{name} (keep=4)"], abs=1e-4)
    config = dict(_rows(text, "config")[1:])
    assert config["moe.pool.kind"] == "uniform" and config["train.eval_keep"] == "[4]"
    assert _rows(text, "environment")[1][0] == "0"
    for layer in range(2):
        last_value = last["load_imbalance_by_layer"][layer]
        assert re.search(rf"layer {layer} [\d.]+ to {re.escape(f'{last_value:.4g}')}", text)


def _edited(workdir, folder, edit):
    """A copy of a run whose records went through `edit`, which returns those to keep."""
    shutil.copytree(workdir, folder)
    file = folder / METRICS_FILE
    records = edit([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_values_of_other_steps_are_named_or_left_out(keeping, tmp_path):
    """The run goes on with another keep, and with windows that have no cooking in them."""

    def edit(records):
        for record in records:
            if record["step"] != 6:
                continue
            record.pop("heldout_loss/cooking", None)
            for name in [name for name in record if name.endswith("(keep=4)")]:
                value = record.pop(name)
                if "/cooking" not in name:
                    record[name.replace("keep=4", "keep=3")] = value
        return records

    run = read_run(_edited(keeping, tmp_path / "run", edit))
    text = page(run)
    (third,) = (r for r in run.records if r["step"] == 3 and "heldout_rise (keep=4)" in r)
    (sixth,) = (r for r in run.records if r["step"] == 6 and "heldout_rise (keep=3)" in r)
    titles, *rows = _rows(text, "keep")
    assert titles == ["domain", "keep 4, step 3", "keep 3"]
    assert [row[0] for row in rows] == ["cooking", "law", "mean"] and rows[0][2] == "–"
    for name, of in (("cooking", "/cooking"), ("law", "/law"), ("mean", "")):
        cells = next(row for row in rows if row[0] == name)
        assert _number(cells[1]) == pytest.approx(third[f"heldout_rise{of} (keep=4)"], abs=1e-4)
        if name != "cooking":
            now = sixth[f"heldout_rise{of} (keep=3)"]
            assert _number(cells[2]) == pytest.approx(now, abs=1e-4)
    losses = {row[0]: row for row in _rows(text, "domains")[1:]}
    assert losses["cooking"][2:] == ["–", "–"] and "–" not in losses["law"]
    assert "At step 6, nats a token." in text


def test_shares_of_sources(keeping, tmp_path):
    assert 'id="sources"' not in page(read_run(keeping))

    def edit(records):
        for record in records:
            if "loss" in record:
                shares = {"s3://b/web": 0.75, "a<b": 0.25 - record["step"] / 1000}
                record |= {f"source_share/{name}": share for name, share in shares.items()}
        return records

    run = read_run(_edited(keeping, tmp_path / "run", edit))
    titles, *rows = _rows(page(run), "sources")
    assert titles == ["source", "share"]
    last = 25 - run.last_step / 10
    assert rows == [["s3://b/web", "75.00 %"], ["a<b", f"{last:.2f} %"]]


@pytest.mark.system
def test_tokens_are_those_of_the_batches_of_each_start(keeping, tmp_path):
    shutil.copytree(keeping, tmp_path / "run")
    file = tmp_path / "run" / "run_info.jsonl"
    first = json.loads(file.read_text())

    def tokens(*starts):
        lines = []
        for step, size in starts:
            config = first["config"] | {"train": first["config"]["train"] | {"batch_size": size}}
            lines.append(json.dumps(first | {"step": step, "config": config}) + "\n")
        file.write_text("".join(lines))
        text = page(read_run(tmp_path / "run"))
        return re.findall(r"<dt>(tokens(?: since [^<]*)?)</dt><dd>(.*?)</dd>", text)[0]

    assert tokens((0, 4)) == ("tokens", f"{6 * 4 * 64:,}")
    assert tokens((0, 8), (2, 16)) == ("tokens", f"{(2 * 8 + 4 * 16) * 64:,}")
    # The second start came to step 5; the third did steps 3 to 5 again. The last did nothing.
    assert tokens((0, 8), (2, 16), (3, 4), (6, 32)) == ("tokens", f"{(16 + 16 + 12) * 64:,}")
    # Begun from another run, whose batches are not known here.
    assert tokens((2, 8)) == ("tokens since step 2", f"{4 * 8 * 64:,}")
    assert tokens() == ("tokens", f"{6 * 4 * 64:,}")


def _table_after(text, section, number):
    body = re.search(rf'<section id="{section}".*?</section>', text, re.S)[0]
    return _rows(f'<section id="x"><table>{body.split("<table>")[1 + number]}</section>', "x")


def _mark(start, first, step, time, outcome="running", **seconds):
    fields = {"start": start, "first": first, "step": step, "time": time, "outcome": outcome}
    return json.dumps(fields | {"seconds": seconds}) + "\n"


def test_goodput_by_cause_and_by_start(keeping, tmp_path):
    """Each bar is as long as its start, and begins where the one before ends."""
    workdir = tmp_path / "run"
    shutil.copytree(keeping, workdir)
    marks = [
        _mark(0, 0, 100, 1_795_003_600.0, startup=600.0, compile=600.0, steps=2400.0),
        _mark(0, 0, 110, 1_795_004_200.0, startup=600.0, compile=600.0, steps=3000.0),
        _mark(1, 100, 100, 1_795_006_300.0, startup=300.0),
        _mark(1, 100, 400, 1_795_013_500.0, "stopped", startup=300.0, steps=7200.0),
    ]
    (workdir / GOODPUT_FILE).write_text("".join(marks))
    text = page(read_run(workdir))
    tiles = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    wall = 4200 + 1800 + 7500
    assert tiles["goodput"] == f"{100 * (2400 + 7200) / wall:.1f} %"
    titles, *rows = _table_after(text, "goodput", 0)
    assert titles == ["cause", "time", "share", "what it is"]
    times = {row[0]: row[1] for row in rows}
    assert times["goodput: steps"] == "2:40:00" and times["badput: lost work"] == "0:10:00"
    assert times["badput: restart"] == "0:35:00" and times["badput: startup"] == "0:10:00"
    assert times["all"] == "3:45:00" and times["badput: input wait"] == "0:00:00"
    assert sum(float(row[2][:-2]) for row in rows) == pytest.approx(200, abs=0.5)
    rows = _table_after(text, "goodput", 1)[1:]
    began = "2026-11-18 11:06"
    first = ["1", began, "0 to 110", "1:10:00", "57.1 %", "0:00:00", "0:10:00", "killed"]
    assert rows[0] == first and rows[1][2:4] == ["100 to 400", "2:35:00"]
    assert rows[1][5:] == ["0:30:00", "0:00:00", "stopped"]
    chart = re.search(r'<section id="goodput".*?</svg>', text, re.S)[0]
    assert (
        "wall time, hours" in chart and "startup, restart" in chart and "evaluation</t" not in chart
    )
    bars = []
    for path, colour in re.findall(r'<path d="(M [^"]*)"[^>]*style="fill: var\((--\w+)\)"', chart):
        xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)]
        bars.append((colour, min(xs), max(xs)))
    hour = max(high - low for colour, low, high in bars if colour == "--c2") / 2
    assert [(c, round((high - low) / hour, 2)) for c, low, high in bars[:6]] == [
        *(("--ink", 0.17), ("--c4", 0.17), ("--c2", 0.67), ("--c1", 0.17)),
        *(("--ink", 0.58), ("--c2", 2.0)),
    ]
    ends = [high for _, _, high in bars[:5]]
    assert ends == pytest.approx([low for _, low, _ in bars[1:6]])


def test_many_starts_and_none(keeping, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(keeping, workdir)
    marks = [_mark(n, n, n + 1, 1.8e9 + 10 * n, startup=2.0, steps=3.0) for n in range(200)]
    (workdir / GOODPUT_FILE).write_text("".join(marks))
    text = page(read_run(workdir))
    assert "The last 40 of 200 starts." in text
    assert [row[0] for row in _table_after(text, "goodput", 1)[1:]] == [
        str(n) for n in range(161, 201)
    ]
    (workdir / GOODPUT_FILE).unlink()
    assert 'id="goodput"' not in page(read_run(workdir))


def test_lines_that_are_no_records_are_left_out(keeping, tmp_path):
    odd = [5, None, "text", [1], {"ce_loss": 0.0}, {"step": None}, {"step": "7"}, {"step": True}]
    run = read_run(_edited(keeping, tmp_path / "run", lambda records: odd + records + odd))
    assert run.records == read_run(keeping).records


def test_a_run_that_logged_no_losses_says_so(keeping, tmp_path):
    run = read_run(_edited(keeping, tmp_path / "run", lambda _: [{"step": 1}]))
    text = page(run)
    assert re.search(r'<section id="losses".*?<p>Not logged.</p></section>', text)
    before_goodput = text[: text.index('<section id="goodput"')]
    assert "<figure>" not in before_goodput and 'id="optimizer"' not in text


def test_many_layers_can_be_read(keeping, tmp_path):
    def edit(records):
        for record in records:
            if "load_imbalance_by_layer" in record:
                record["load_imbalance_by_layer"] = [1 + n / 48 for n in range(48)]
        return records

    text = page(read_run(_edited(keeping, tmp_path / "run", edit)))
    part = text.split("<h3>load imbalance</h3>")[1].split("<h3>")[0]
    shown = re.findall(r">(layer \d+)</text>", part)
    assert shown == [f"layer {n}" for n in (*range(8), *range(40, 48))]
    said = "Tokens of the busiest routed expert over the mean. The chart shows the lowest"
    assert f"<p>{said} and the highest 8 of 48.</p>" in part


def test_a_report_is_made_anew_and_nothing_else_is_replaced(keeping, tmp_path, capsys):
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    for file, said in (
        (mine, "is there already and is no report"),
        (tmp_path, "is there already and is no report"),
        (tmp_path / "no" / "report.html", "no such folder"),
    ):
        assert runs.emo_here("report", keeping, "--output", file) == 2
        assert said in capsys.readouterr().err
    assert mine.read_text() == "mine"
    file = tmp_path / "report.html"
    file.write_text(f"<!doctype html>\n{MARK}\nold")
    assert runs.emo_here("report", keeping, "--output", file) == 0
    assert "old" not in file.read_text()[:200] and len(file.read_text()) > 10_000
    # The same log gives the same page.
    before = file.read_bytes()
    assert runs.emo_here("report", keeping, "--output", file) == 0
    assert file.read_bytes() == before


def test_a_run_goes_on_in_a_workdir_with_a_report(keeping, store, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(keeping, workdir)
    (workdir / "report.html").write_text(MARK)
    fields = {"train__steps": 6, "train__eval_every": 3, "train__eval_keep": "(4,)"}
    argv = runs.train_argv(store, workdir, **fields, train__batch_size=4)
    assert runs.emo(argv, runs.environment()).returncode == 0


def test_refusals(tmp_path, capsys, keeping):
    assert runs.emo_here("report", tmp_path) == 2
    assert (
        f"{tmp_path}: no metrics.jsonl here; give the workdir of a run" in capsys.readouterr().err
    )
    assert runs.emo_here("report", f"{keeping}@3") == 2
    said = f"{keeping}@3: a report is of the whole run; give {keeping}, without @3"
    assert said in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / METRICS_FILE).write_text("")
    assert runs.emo_here("report", empty) == 2
    assert "nothing was logged yet" in capsys.readouterr().err
    (empty / METRICS_FILE).write_text((keeping / METRICS_FILE).read_text())
    assert runs.emo_here("report", empty) == 2
    assert "cannot be read as a workdir" in capsys.readouterr().err
    assert not (empty / "report.html").exists()


@pytest.fixture(scope="module")
def odd(keeping, tmp_path_factory):
    """A log of forty domains with hostile names."""
    workdir = tmp_path_factory.mktemp("odd") / "run"
    shutil.copytree(keeping, workdir)
    (workdir / "report.html").unlink(missing_ok=True)
    names = [
        "<script>alert(1)</script>",
        "$x_{ · ^$",
        "$b$",
        "#1b1f24",
        "\u202edomain",
        "a\x00b",
        '"&<',
        "市場",
    ]
    names += [f"domain {n}" for n in range(32)]
    lines = []
    for line in (workdir / METRICS_FILE).read_text().splitlines():
        record = json.loads(line)
        if "heldout_loss" in record:
            record |= {f"heldout_loss/{name}": 1 + n / 10 for n, name in enumerate(names)}
        lines.append(json.dumps(record))
    (workdir / METRICS_FILE).write_text("\n".join(lines) + "\n{cut")
    return workdir


def test_names_are_text_and_many_fit(odd):
    text = page(read_run(odd))
    assert "<script" not in text and not re.search(r"url\((?!#)|https?:", _without_names(text))
    rows = _rows(text, "domains")
    assert len(rows) == 1 + 40 + 2 and "<script>alert(1)</script>" in [row[0] for row in rows]
    assert "The chart shows the lowest and the highest 8 of 42." in text
    losses = re.search(r'<section id="domains".*?</svg>', text, re.S)[0]
    shown = [html.unescape(name) for name in re.findall(r"<text[^>]*>([^<]*)</text>", losses)]
    assert {"<script>alert(1)</script>", "$x_{ · ^$", "$b$", "#1b1f24", "·domain"} <= set(shown)


def _without_names(text):
    """The names of XML's own namespaces are addresses, and are not fetched."""
    return re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)


@pytest.mark.system
@pytest.mark.parametrize("which", ["keeping", "odd"])
def test_in_a_browser(which, request, tmp_path):
    """No script, no fault for those who cannot see it, no wider than the window."""
    workdir = request.getfixturevalue(which)
    file = tmp_path / "report.html"
    assert runs.emo_here("report", workdir, "--output", file) == 0
    backgrounds = set()
    with browsing.browser() as started:
        for width, theme in WIDTHS:
            settings = {"color_scheme": theme, "bypass_csp": True, "ready": "main"}
            with tab(started, file, width=width, **settings) as shown:
                assert overflow(shown) <= 0
                assert shown.locator("figure svg").count() >= 10
                backgrounds.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
                shown.click("summary")
                assert shown.is_visible("#config table")
                shown.screenshot(path=tmp_path / f"{width}-{theme}.png", full_page=True)
                assert not faults(shown)
    assert len(backgrounds) == 2

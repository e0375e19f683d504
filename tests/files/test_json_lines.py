import json
import logging

import pytest

from emo_jax.errors import UsageError
from emo_jax.files import json_lines
from emo_jax.files.json_files import Fields
from emo_jax.files.json_lines import json_line, mend_lines, read_lines
from emo_jax.run.metrics_file import MetricsFile


def _check(record):
    Fields(record).integer("step")


def _written(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    return path


GOOD = b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    ("content", "steps", "bad", "cut"),
    [
        (GOOD, [1, 2], [], False),
        (GOOD[:-1], [1, 2], [], False),  # only its end is missing: nothing is lost
        (GOOD + b'{"step": 3', [1, 2], ["line 3 (broken JSON"], True),
        (GOOD + b'{"st\xc3', [1, 2], ["line 3 (invalid UTF-8"], True),
        (b'{"step": 1}\n{"st\n{"step": 3}\n', [1, 3], ["line 2 (broken JSON"], False),
        (b"\x00\xff\x89PNG\r\n" + GOOD, [1, 2], ["line 1 ("], False),
        (b"\n\r\n" + GOOD.replace(b"\n", b"\r\n"), [1, 2], [], False),
        ("\ufeff".encode() + GOOD, [1, 2], [], False),
        ('{"step": 1, "x": "\u2028\x85"}\n'.encode() + GOOD, [1, 1, 2], [], False),
        (
            GOOD + b'[1]\n7\n{"step": "2"}\n{"loss": 1}\n',
            [1, 2],
            [
                "line 3 (must be a JSON object",
                "line 4",
                "line 5 (step must",
                "line 6 (no field step",
            ],
            False,
        ),
        (b"[" * 100_000 + b"\n" + GOOD, [1, 2], ["line 1 (JSON that is nested too deep"], False),
        (GOOD.decode().encode("utf-16"), [], ["line 1 (UTF-16 text", "line 2"], None),
        (b"", [], [], False),
    ],
)
def test_whatever_is_no_record_is_left_out_and_named(tmp_path, content, steps, bad, cut):
    lines = read_lines(_written(tmp_path, content), _check)
    assert [record["step"] for record in lines.records] == steps
    assert len(lines.bad) >= len(bad)
    for found, expected in zip(lines.bad, bad, strict=False):
        assert found.startswith(expected), lines.bad
    if cut is not None:
        assert lines.cut == cut and len(lines.bad) == len(bad)


def test_a_line_without_an_end_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE", 100)
    tail = b'{"step": 9}\n'
    path = _written(tmp_path, b"x" * (200 - len(tail)) + b" " * 0 + tail + GOOD)
    lines = read_lines(path, _check)
    assert [record["step"] for record in lines.records] == [1, 2]
    assert lines.bad == ["line 1 (longer than 100 bytes)"]
    assert read_lines(_written(tmp_path, GOOD + b"x" * 1000)).cut


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_lines(tmp_path / "none")
    with pytest.raises(UsageError, match=r"cannot be read \(not a regular file\); mend or remove"):
        read_lines(tmp_path)


def test_half_a_last_line_is_dropped_and_said(tmp_path, caplog):
    path = _written(tmp_path, GOOD + b'{"step": 3, "lo')
    lines = read_lines(path, _check)
    with caplog.at_level(logging.WARNING):
        mend_lines(path, lines, lines.records)
    assert path.read_bytes() == GOOD
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    assert caplog.messages[0].startswith(f"{path}: left out: line 3 (broken JSON")


def test_what_else_is_no_record_stays_in_a_copy(tmp_path, caplog):
    for n in (1, 2):
        content = GOOD + b"what somebody wrote\n" + GOOD[:12] + b'{"st'
        path = _written(tmp_path, content)
        lines = read_lines(path, _check)
        with caplog.at_level(logging.WARNING):
            mend_lines(path, lines, [*lines.records, {"step": 5, "loss": float("nan")}])
        assert path.read_text().splitlines()[-1] == '{"step": 5, "loss": null}'
        assert (tmp_path / f"a.jsonl.damaged{n}").read_bytes() == content
        assert f"as it was it is a.jsonl.damaged{n} now" in caplog.messages[-1]


def test_lines_are_json_whatever_the_numbers(tmp_path):
    record = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": -float("inf")}}
    assert json_line(record) == '{"a": null, "b": [1.0, null], "c": {"d": null}}\n'
    assert json.loads(json_line({"step": 1}), parse_constant=pytest.fail) == {"step": 1}


def test_what_a_link_leads_to_elsewhere_is_neither_read_nor_written(tmp_path):
    mine = _written(tmp_path, GOOD)
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / "metrics.jsonl"
    path.symlink_to(mine)
    with pytest.raises(UsageError, match="outside of its folder"):
        read_lines(path)
    path.unlink()
    path.symlink_to(tmp_path / "new")
    with pytest.raises(UsageError, match="a link to nothing"):
        read_lines(path)
    with pytest.raises(UsageError, match="a link to nothing"):
        MetricsFile(folder, resume_step=1)
    path.unlink()
    path.write_bytes(GOOD + b"[1]\n")
    (folder / "metrics.jsonl.damaged1").symlink_to(tmp_path / "new")
    lines = read_lines(path)
    mend_lines(path, lines, lines.records)
    assert (folder / "metrics.jsonl.damaged2").read_bytes() == GOOD + b"[1]\n"
    assert not (tmp_path / "new").exists() and mine.read_bytes() == GOOD

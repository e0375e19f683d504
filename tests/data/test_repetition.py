import numpy as np
import pytest

from emo_jax.data.repetition import is_repetitive, repetitive_rows


def leading(row):
    """Number of True at the start of a row."""
    return next((i for i, value in enumerate(row) if not value), len(row))


def slow_is_repetitive(tokens, max_period=13, min_period=1, max_count=32):
    """SPEC 5.5 word by word: rows of the period's length, each compared with the one before."""
    for period in range(min_period, min(max_period, len(tokens) // 3) + 1):
        padding = period - len(tokens) % period
        rows = [*tokens, *[-1] * padding]
        rows = [rows[i : i + period] for i in range(0, len(rows), period)]
        before = [rows[-1], *rows[:-1]]
        equal = [
            [a == b for a, b in zip(*two, strict=True)] for two in zip(rows, before, strict=True)
        ]
        i = 0
        while i < len(rows):
            if not all(equal[i]):
                i += 1
                continue
            first = i
            while i < len(rows) and all(equal[i]):
                i += 1
            start = (first - 1) * period - leading(equal[first - 1][::-1])
            end = i * period + leading(equal[i % len(rows)])
            times = (end - start) // period
            if times > 2 and times >= max_count:
                return True
    return False


def random_window(draw):
    """Noise with a periodic stretch somewhere, whose length is near the limit."""
    size = int(draw.integers(40, 700))
    tokens = draw.integers(0, draw.choice([2, 3, 50]), size)
    period = int(draw.integers(1, 16))
    length = min(int(period * draw.integers(28, 36) + draw.integers(0, period)), size)
    start = int(draw.integers(0, size - length + 1))
    tokens[start : start + length] = np.resize(draw.integers(0, 50, period), length)
    return tokens


@pytest.mark.parametrize("max_count", [1, 3, 5, 32])
def test_decides_as_the_reference_does(max_count):
    draw = np.random.default_rng(max_count)
    decisions = []
    for _ in range(150):
        tokens = random_window(draw)
        expected = slow_is_repetitive(tokens.tolist(), max_count=max_count)
        assert is_repetitive(tokens, max_count=max_count) == expected, tokens.tolist()
        decisions.append(expected)
    assert max_count < 32 or 0.1 < np.mean(decisions) < 0.9


@pytest.mark.parametrize("period", [1, 2, 7, 13])
@pytest.mark.parametrize("offset", [0, 5])
def test_limit(period, offset):
    pattern = 1000 + np.arange(period)
    noise = np.arange(4096)
    for count, expected in ((31, False), (32, True)):
        tokens = noise.copy()
        tokens[offset : offset + count * period] = np.tile(pattern, count)
        tokens[offset + count * period] = 5000  # the pattern ends here
        assert is_repetitive(tokens) == expected == slow_is_repetitive(tokens.tolist())


def test_longer_periods_pass():
    assert not is_repetitive(np.tile(np.arange(14), 200))
    assert is_repetitive(np.tile(np.arange(13), 200))


def test_short_windows():
    for size in range(40):
        tokens = np.zeros(size, int)
        assert is_repetitive(tokens) == (size >= 32) == slow_is_repetitive(tokens.tolist())


def planted(draw):
    """A batch (B,S), each row with runs of about the needed length, most of them near it."""
    B, S = int(draw.integers(1, 9)), int(draw.integers(1, 700))
    tokens = draw.integers(0, draw.choice([1, 2, 3, 50]), (B, S)).astype(np.int32)
    for row in tokens:
        for _ in range(draw.integers(0, 3)):
            period = int(draw.integers(1, 15))
            length = int(draw.integers(28, 35)) * period + int(draw.integers(-period, period + 1))
            start = int(draw.integers(-length, S))
            run = np.resize(draw.integers(0, 4, period), length)
            begin, end = max(start, 0), min(start + length, S)
            row[begin:end] = run[begin - start : end - start]
    return tokens


@pytest.mark.parametrize("max_count", [1, 3, 4, 5, 31, 32])
@pytest.mark.parametrize("periods", [(1, 13), (2, 5), (3, 20), (1, 1)])
def test_rows_at_once_are_decided_as_one_by_one(max_count, periods):
    limits = {"min_period": periods[0], "max_period": periods[1], "max_count": max_count}
    draw = np.random.default_rng([max_count, *periods])
    decisions = []
    for _ in range(80):
        tokens = planted(draw)
        expected = [is_repetitive(row, **limits) for row in tokens]
        assert repetitive_rows(tokens, **limits).tolist() == expected, tokens.tolist()
        decisions += expected
    assert 0.02 < np.mean(decisions) < 0.98


@pytest.mark.parametrize("period", range(1, 14))
@pytest.mark.parametrize("missing", [0, 1])
def test_a_run_is_found_wherever_it_starts_and_one_token_less_is_not(period, missing):
    size = 3 * 32 * period
    length = 32 * period - missing
    rows = np.tile(np.arange(size, dtype=np.int32) + period, (size - length + 1, 1))
    for start, row in enumerate(rows):
        row[start : start + length] = np.resize(np.arange(period), length)
    assert (repetitive_rows(rows) == (missing == 0)).all()


def test_padding_is_no_repetition():
    rows = np.zeros((3, 200), np.int32)
    rows[0] = np.arange(200)
    rows[1, :100] = np.arange(100)
    rows[2, :40] = 7
    assert repetitive_rows(rows, np.array([200, 100, 40])).tolist() == [False, False, True]
    assert repetitive_rows(rows).tolist() == [False, True, True]

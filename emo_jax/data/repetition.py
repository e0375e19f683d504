"""The repetition filter: finds windows with a short pattern repeated many times (SPEC 5.5).

The reference folds a window into rows of one period, compares the rows, and then fixes up the ends
of each run. That finds the stretches where every token equals the one a period before, which is
what is computed here; a test checks that both make the same decisions.
"""

import numpy as np

MIN_PERIOD = 1
MAX_PERIOD = 13
MAX_COUNT = 32


def is_repetitive(
    tokens: np.ndarray,
    *,
    min_period: int = MIN_PERIOD,
    max_period: int = MAX_PERIOD,
    max_count: int = MAX_COUNT,
) -> bool:
    """Whether a pattern of `min_period`..`max_period` tokens occurs `max_count` times in a row.

    Args:
      tokens: (S,) int ids.
      min_period: shortest pattern, at least 1.
      max_period: longest pattern.
      max_count: at least 3; below that, the reference reports nothing.
    """
    # A pattern must fit three times to be detected at all.
    for period in range(min_period, min(max_period, tokens.size // 3) + 1):
        breaks = np.flatnonzero(tokens[period:] != tokens[:-period])
        edges = np.concatenate([[-1], breaks, [tokens.size - period]])
        longest = int(np.diff(edges).max()) - 1
        # A run of n equal tokens is n + period tokens long, so it holds the pattern n/period + 1
        # times; without one full row of equal tokens the reference sees no run.
        if longest >= period and (longest + period) // period >= max(max_count, 3):
            return True
    return False


def repetitive_rows(
    tokens_BS: np.ndarray,
    sizes_B: np.ndarray | None = None,
    *,
    min_period: int = MIN_PERIOD,
    max_period: int = MAX_PERIOD,
    max_count: int = MAX_COUNT,
) -> np.ndarray:
    """`is_repetitive` of each row of (B,S) int ids: (B,) bool, from a tenth of the comparisons.

    What follows the first `sizes_B` tokens of a row is padding, and not looked at.

    A repetition has `need` tokens in a row that equal the one a period before. Wherever it starts,
    it covers two neighbours of a grid of half that width, and all that lies between them. Rows
    without such neighbours are not looked at again.
    """
    B, S = tokens_BS.shape
    found = np.zeros(B, bool)
    for period in range(min_period, min(max_period, S // 3) + 1):
        need = (max(max_count, 3) - 1) * period
        if need > S - period:
            break
        half = need // 2
        first = half - 1  # the grid; one of its points is in the first `half` tokens
        equal = tokens_BS[:, first : S - period : half] == tokens_BS[:, first + period :: half]
        rows, points = np.nonzero(equal[:, :-1] & equal[:, 1:] & ~found[:, None])
        if rows.size:
            between = points[:, None] * half + first + np.arange(half)
            run = tokens_BS[rows[:, None], between] == tokens_BS[rows[:, None], between + period]
            for row in np.unique(rows[run.all(axis=1)]):
                tokens = tokens_BS[row] if sizes_B is None else tokens_BS[row, : sizes_B[row]]
                found[row] = is_repetitive(
                    tokens, min_period=period, max_period=period, max_count=max_count
                )
    return found

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


def repetitive_rows(tokens_NS: np.ndarray, sizes_N: np.ndarray) -> np.ndarray:
    """Returns which rows `is_repetitive` with the usual bounds, without looking at every token.

    A repetition is a run of tokens that equal the one a period before. Wherever a run begins, it
    covers two neighbours of a grid of half its least length; few rows have equal tokens at two such
    neighbours, and only these are looked at in full.

    Args:
      tokens_NS: (N,S) int ids.
      sizes_N: tokens of each row; what follows is padding.

    Returns:
      (N,) bool.
    """
    size = tokens_NS.shape[1]
    found = np.zeros(len(tokens_NS), bool)
    for period in range(MIN_PERIOD, min(MAX_PERIOD, size // 3) + 1):
        least = (MAX_COUNT - 1) * period
        if least > size - period:
            break
        half = least // 2
        equal = (
            tokens_NS[:, half - 1 : size - period : half] == tokens_NS[:, half - 1 + period :: half]
        )
        rows, at = np.nonzero(equal[:, :-1] & equal[:, 1:])
        between = (at + 1)[:, None] * half - 1 + np.arange(half)
        same = tokens_NS[rows[:, None], between] == tokens_NS[rows[:, None], between + period]
        for row in np.unique(rows[same.all(axis=1)]):
            found[row] = found[row] or is_repetitive(
                tokens_NS[row, : sizes_N[row]], min_period=period, max_period=period
            )
    return found

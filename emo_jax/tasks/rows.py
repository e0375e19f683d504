"""Requests for log-likelihoods, packed into rows of few shapes.

Requests that differ in the continuation only are one group: its prompt is in the row once, and the
continuations are branches that follow it. A request that shares its prompt with no other is in the
row as it is, without its last token, which nothing follows.

Legend: B rows, T tokens of prompts, N tokens of branches, K predicted tokens.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emo_jax.batch import BATCH_TOKENS, PADDING_ID

_LEAST = 128  # tokens of a row: several short prompts share one
# Tokens of a group's branches, beyond which its requests are read one by one: the scores of all
# branches of a row exist at once.
_MOST_BRANCHED = 1024
# Of a batch on one device. On two CPU cores, with 64 experts, half as many took an eighth longer.
_TOKENS = 2 * BATCH_TOKENS
_OPEN_ROWS = 64  # that are looked at for room


class Request(NamedTuple):
    """Tokens to predict, and those before them.

    Attributes:
      prompt, continuation: ids; neither is empty.
      domain: whose experts are used, where domains have experts of their own.
    """

    prompt: Sequence[int]
    continuation: Sequence[int]
    domain: int = 0


class Arrays(NamedTuple):
    """Rows, of NumPy or JAX; all int32."""

    tokens_BT: Any
    documents_BT: Any  # the group of each token; -1: padding
    positions_BT: Any  # in its group, from 0
    domains_BT: Any
    tokens_BN: Any
    branches_BN: Any  # -1: padding
    documents_BN: Any
    positions_BN: Any
    domains_BN: Any
    sources_BK: Any  # the token that predicts, among the T and then the N of its row
    labels_BK: Any  # the token that is predicted


class Rows(NamedTuple):
    """A batch."""

    arrays: Arrays
    requests_BK: np.ndarray  # index of the request that a prediction belongs to; -1: none
    tokens: int  # without padding


@dataclasses.dataclass
class _Group:
    """A prompt and the branches after it; predictions as (request, branch, place, label).

    A place is counted from the start of the branch, or of the stem where the branch is -1.
    """

    domain: int
    stem: list[int]
    branches: list[list[int]]
    predictions: list[tuple[int, int, int, int]]

    @property
    def branched(self) -> int:
        return sum(map(len, self.branches))


def cut_left(request: Request, window: int) -> Request:
    """The request with the last `window` tokens of its input; the last token is not an input."""
    extra = len(request.prompt) + len(request.continuation) - window - 1
    return request if extra <= 0 else request._replace(prompt=request.prompt[extra:])


def packed(
    requests: Sequence[Request], window: int, *, devices: int = 1, ways: int = 1, pad_id: int = 0
) -> list[Rows]:
    """Packs requests, each at most `window` tokens of input, into batches, the longest first.

    There are few values of T, two for each doubling, and one set of B, N and K for each, so that
    few programs are compiled.

    Args:
      requests: what to predict.
      window: largest T.
      devices: rows of a batch are a multiple of this.
      ways: T and N are multiples of this, as the window is.
      pad_id: token of padding.
    """
    groups = sorted(_groups(requests), key=lambda g: (-len(g.stem), -g.branched))
    by_size: dict[int, list[_Group]] = {}
    for group in groups:
        by_size.setdefault(_size(len(group.stem), window, ways), []).append(group)
    batches = []
    for T, members in by_size.items():
        # Groups with branches apart from those without, which need no second pass.
        for some in ([g for g in members if g.branches], [g for g in members if not g.branches]):
            if some:
                batches += _batches(some, T, devices, ways, pad_id)
    return batches


def _size(tokens: int, window: int, ways: int) -> int:
    size = _rounded(max(_LEAST, tokens), 2)
    return window if size > window or size % ways else size


def _groups(requests: Sequence[Request]) -> list[_Group]:
    alike: dict[tuple, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault((request.domain, tuple(request.prompt)), []).append(number)
    groups = []
    for (domain, prompt), numbers in alike.items():
        branched = sum(len(requests[n].continuation) - 1 for n in numbers)
        if len(numbers) > 1 and branched <= _MOST_BRANCHED:
            groups.append(_shared(domain, prompt, numbers, requests))
            continue
        for n in numbers:
            continuation = list(requests[n].continuation)
            before = len(prompt) - 1
            predictions = [(n, -1, before + i, label) for i, label in enumerate(continuation)]
            groups.append(_Group(domain, [*prompt, *continuation[:-1]], [], predictions))
    return groups


def _shared(
    domain: int, prompt: Sequence[int], numbers: list[int], requests: Sequence[Request]
) -> _Group:
    branches: list[list[int]] = []
    predictions: list[tuple[int, int, int, int]] = []
    for n in numbers:
        first, *others = requests[n].continuation
        predictions.append((n, -1, len(prompt) - 1, first))
        if others:
            predictions += [(n, len(branches), i, label) for i, label in enumerate(others)]
            branches.append([first, *others[:-1]])
    return _Group(domain, list(prompt), branches, predictions)


def _batches(groups: list[_Group], T: int, devices: int, ways: int, pad_id: int) -> list[Rows]:
    N = 0
    if groups[0].branches:
        # As many as rows full of prompts have on average, and at least the largest group's.
        share = sum(g.branched for g in groups) / sum(len(g.stem) for g in groups)
        largest = max(g.branched for g in groups)
        N = _rounded(max(largest, min(T * share, T, _MOST_BRANCHED)), 4)
        N += -N % ways
    rows = _filled(groups, T, N)
    K = _rounded(max(sum(len(g.predictions) for g in row) for row in rows), 4)
    most = max(1, _TOKENS // (T + N)) * devices
    step = max(1, most // (8 * devices)) * devices
    # Batches of one size, the last of which is nearly full too.
    B = -(-len(rows) // -(-len(rows) // most))
    B += -B % step
    return [
        _arrays(rows[first : first + B], B, T, N, K, pad_id) for first in range(0, len(rows), B)
    ]


def _filled(groups: list[_Group], T: int, N: int) -> list[list[_Group]]:
    """Groups by row, each in the first of the last rows that has room."""
    rows: list[list[_Group]] = []
    room: list[tuple[int, int]] = []
    for group in groups:
        begin = max(0, len(rows) - _OPEN_ROWS)
        for row in range(begin, len(rows)):
            left_T, left_N = room[row]
            if left_T >= len(group.stem) and left_N >= group.branched:
                break
        else:
            row = len(rows)
            rows.append([])
            room.append((T, N))
        rows[row].append(group)
        room[row] = (room[row][0] - len(group.stem), room[row][1] - group.branched)
    return rows


def _rounded(tokens: float, steps: int) -> int:
    """The next number, at least 16, of those that part a doubling into `steps` equal parts."""
    wanted = max(16, math.ceil(tokens))
    step = max(1, (1 << ((wanted - 1).bit_length() - 1)) // steps)
    return wanted + -wanted % step


def _arrays(batch: list[list[_Group]], B: int, T: int, N: int, K: int, pad_id: int) -> Rows:
    def full(columns: int, value: int) -> np.ndarray:
        return np.full((B, columns), value, np.int32)

    made = Arrays(
        *(full(T, pad_id), full(T, PADDING_ID), full(T, 0), full(T, 0)),
        *(full(N, pad_id), full(N, PADDING_ID), full(N, PADDING_ID), full(N, 0), full(N, 0)),
        *(full(K, 0), full(K, 0)),
    )
    requests_BK, tokens = full(K, -1), 0
    for row, groups in enumerate(batch):
        at, branch_at, label_at, branches = 0, 0, 0, 0
        for number, group in enumerate(groups):
            length = len(group.stem)
            stem = slice(at, at + length)
            made.tokens_BT[row, stem] = group.stem
            made.documents_BT[row, stem] = number
            made.positions_BT[row, stem] = np.arange(length)
            made.domains_BT[row, stem] = group.domain
            starts = {-1: at}
            for b, branch in enumerate(group.branches):
                here = slice(branch_at, branch_at + len(branch))
                made.tokens_BN[row, here] = branch
                made.branches_BN[row, here] = branches
                made.documents_BN[row, here] = number
                made.positions_BN[row, here] = length + np.arange(len(branch))
                made.domains_BN[row, here] = group.domain
                starts[b] = T + branch_at
                branch_at, branches = here.stop, branches + 1
            predicted = np.array(
                [(n, starts[b] + place, label) for n, b, place, label in group.predictions]
            )
            labels = slice(label_at, label_at + len(predicted))
            requests_BK[row, labels] = predicted[:, 0]
            made.sources_BK[row, labels] = predicted[:, 1]
            made.labels_BK[row, labels] = predicted[:, 2]
            at, label_at = stem.stop, labels.stop
            tokens += length + group.branched
    return Rows(made, requests_BK, tokens)

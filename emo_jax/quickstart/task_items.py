"""Multiple-choice items made from documents: what comes next, and in which language it is.

The correct answer is the unit (a sentence, or a line of code or music) that follows the query in a
document. All documents of an item are of one split, and a unit that occurs twice in its domain is
never a choice, so nothing that a model was trained on, or that validation shows, tells the answer.
"""

import bisect
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from emo_jax.data.stream import SPLITS
from emo_jax.documents.records import Document
from emo_jax.errors import DataError
from emo_jax.preparation.pieces import hash64, split_key, without_piece
from emo_jax.preparation.splits import DEFAULT_FRACTIONS, split_of, usual_edges

# A task's split by the store's: a store prepared with the default fractions trains on neither.
OF_SPLIT = {"select": "validation", "test": "test"}
LINES = ("cloud", "code_python", "code_ts", "music_abc", "taxes")  # domains whose units are lines
LANGUAGES = {"encyclopedia": "English", "lang_es": "Spanish", "lang_fr": "French"}
NUM_WRONG = 3
_SENTENCE_CHARS, _LINE_CHARS = (40, 240), (16, 120)  # of a choice
_LEAST_QUERY, _MOST_QUERY = 60, 400  # characters
_SENTENCE_END = re.compile(
    r"(?<=[.!?…])[\"'»”’)\]]*(?P<space>\s+)(?=[\"'«“‘(\[¿¡]?[A-ZÀ-Þ0-9])|(?P<gap>\s*\n\s*\n\s*)"
)
_LINE_END = re.compile(r"(?P<space>\s*\n[^\S\n]*)")
_FIELD = re.compile(r"[A-Za-z]:")  # of a tune in ABC notation


class Item(NamedTuple):
    """One question, as in a line of the task's files.

    Attributes:
      id: unique within a task.
      domain: what it is about.
      query: the text before the answer.
      choices: ways to go on, each with the white space before it.
      gold: index of the correct one.
      documents: ids of all documents that it quotes.
    """

    id: str
    domain: str
    query: str
    choices: tuple[str, ...]
    gold: int
    documents: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields of a line of a task's file."""
        return self._asdict()


class Unit(NamedTuple):
    """A sentence or line that can be a choice."""

    document: str  # id of the whole document, where the text is a piece of one
    start: int  # place in the text
    query: str  # text before it
    space: str  # white space between the two
    text: str

    @property
    def indent(self) -> str:
        """White space at the start of its line; empty within a line."""
        _, broken, indent = self.space.rpartition("\n")
        return indent if broken else ""


Units = dict[tuple[str, str], list[Unit]]  # by domain and split


def held_out_units(documents: Iterable[Document]) -> Units:
    """Units of held-out documents that occur only once in their domain.

    Args:
      documents: the whole corpus, the documents that a store trains on included.
    """
    edges = usual_edges(DEFAULT_FRACTIONS)
    counts: Counter[tuple[str, int]] = Counter()
    found: Units = defaultdict(list)
    for document in documents:
        key = np.array([split_key(document.id)], np.uint64)
        split = OF_SPLIT.get(SPLITS[int(split_of(key, edges)[0])])
        for unit in _units(document):
            counts[document.domain, _mark(unit)] += 1
            if split is not None:
                found[document.domain, split].append(unit)
    return {
        (domain, split): [unit for unit in units if counts[domain, _mark(unit)] == 1]
        for (domain, split), units in found.items()
    }


def _mark(unit: Unit) -> int:
    return hash64(re.sub(r"\W+", " ", unit.text).strip().lower())


def _units(document: Document) -> Iterator[Unit]:
    """Units that are neither short nor long, with enough text before them."""
    lines, text = document.domain in LINES, document.text
    least, most = _LINE_CHARS if lines else _SENTENCE_CHARS
    whole = without_piece(document.id)
    starts, stops = [0], []
    for found in (_LINE_END if lines else _SENTENCE_END).finditer(text):
        stops.append(found.start("space") if found["space"] else found.start("gap"))
        starts.append(found.end())
    stops.append(len(text))
    for i in range(1, len(starts)):
        first = bisect.bisect_left(starts, starts[i] - _MOST_QUERY)
        query, unit = text[starts[first] : stops[i - 1]], text[starts[i] : stops[i]]
        if (
            least <= len(unit) <= most
            and len(query) >= _LEAST_QUERY
            and any(c.isalpha() for c in unit)
            and not (lines and _FIELD.match(unit))
        ):
            yield Unit(whole, starts[i], query, text[stops[i - 1] : starts[i]], unit)


def in_turns(units: Sequence[Unit], number: int) -> list[Unit]:
    """Up to `number` units: one of each document, then a second one of each, and so on."""
    of_document: dict[str, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=lambda u: hash64("unit", u.document, str(u.start), u.text)):
        of_document[unit.document].append(unit)
    documents = sorted(of_document, key=lambda name: hash64("turn", name))
    rounds = max(map(len, of_document.values()), default=0)
    every = [of_document[d][n] for n in range(rounds) for d in documents if n < len(of_document[d])]
    return every[:number]


def next_items(units: Units, domain: str, split: str, number: int, *, others: bool) -> list[Item]:
    """What comes next: the unit that does, among three of other documents, of similar length.

    Args:
      units: from `held_out_units`.
      domain: of the query and the correct choice.
      split: "validation" or "test".
      number: of items, at most.
      others: the wrong choices are of three other domains; False: of the same domain.

    Raises:
      DataError: there is none.
    """
    mine = units.get((domain, split), [])
    there = {d for d, s in units if s == split and units[d, s]} - {domain}
    pools = {d: _Pool(units[d, split], indented=False) for d in sorted(there)} if others else {}
    if mine and not others:
        pools = {domain: _Pool(mine, indented=True)}
    items = []
    for gold in in_turns(mine, number):
        name = f"{gold.document}@{gold.start}"
        order = sorted(pools, key=lambda d: hash64("pool", name, d))[:NUM_WRONG]
        wrong = [unit for d in order for unit in pools[d].similar(gold, NUM_WRONG // len(order))]
        if len(wrong) == NUM_WRONG:
            items.append(_next_item(name, domain, gold, wrong))
    if not items:
        needed = f"{NUM_WRONG} other domains" if others else f"{NUM_WRONG} others of the domain"
        raise DataError(
            f"tasks: no {split} item for the domain {domain!r}: {len(mine)} sentences or lines can"
            f" be held out, and each needs {needed}; name other domains (--domains)"
        )
    return items


class _Pool:
    """Units by length, and first by indentation if they are `indented`."""

    def __init__(self, units: Iterable[Unit], *, indented: bool):
        self._indented = indented
        order = sorted(units, key=lambda u: (self._key(u), hash64("pool", u.document, u.text)))
        self._units, self._keys = order, [self._key(unit) for unit in order]

    def _key(self, unit: Unit) -> tuple[int, int]:
        return len(unit.indent) * self._indented, len(unit.text)

    def similar(self, gold: Unit, number: int) -> list[Unit]:
        """The most similar units of different documents, other than that of `gold`."""
        found: dict[str, Unit] = {}
        key = self._key(gold)
        right = bisect.bisect_left(self._keys, key)
        left = right - 1

        def distance(at: int) -> tuple[int, int]:
            if not 0 <= at < len(self._keys):
                return (1 << 30, 0)
            indent, length = self._keys[at]
            return abs(indent - key[0]), abs(length - key[1])

        while len(found) < number and (left >= 0 or right < len(self._units)):
            if distance(left) < distance(right):
                unit, left = self._units[left], left - 1
            else:
                unit, right = self._units[right], right + 1
            if unit.document != gold.document:
                found.setdefault(unit.document, unit)
        return list(found.values())


def _next_item(name: str, domain: str, gold: Unit, wrong: Sequence[Unit]) -> Item:
    # The white space before the choices is the correct one's, but for their own indentation.
    before = gold.space.removesuffix(gold.indent)
    order = sorted((gold, *wrong), key=lambda u: hash64("place", name, u.document, u.text))
    return Item(
        id=name,
        domain=domain,
        query=gold.query,
        choices=tuple(before + unit.indent * (domain in LINES) + unit.text for unit in order),
        gold=order.index(gold),
        documents=tuple(dict.fromkeys(unit.document for unit in (gold, *wrong))),
    )


def language_items(units: Units, domains: Sequence[str], split: str, number: int) -> list[Item]:
    """Which language a sentence is in; as many sentences of each.

    Args:
      units: from `held_out_units`.
      domains: some of `LANGUAGES`.
      split: "validation" or "test".
      number: of items, at most.
    """
    share = min(number // len(domains), *(len(units.get((d, split), [])) for d in domains))
    items = [
        Item(
            id=f"{unit.document}@{unit.start}",
            domain="language",
            query=f"{unit.text}\nLanguage:",
            choices=tuple(f" {LANGUAGES[d]}" for d in domains),
            gold=gold,
            documents=(unit.document,),
        )
        for gold, domain in enumerate(domains)
        for unit in in_turns(units.get((domain, split), []), share)
    ]
    return sorted(items, key=lambda item: hash64("item", item.id))

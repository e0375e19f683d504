"""Where a text ends, whatever the tokens are that its stop strings come in."""

import random

import pytest
from tiny import tiny_config

from emo_jax.generation.texts import TextGenerator, TextSettings, _Watched
from emo_jax.model.functions import ModelFunctions
from emo_jax.tokenizer.load import byte_tokenizer

TOKENIZER = byte_tokenizer()


def _read(text: str, stop: tuple[str, ...], sizes) -> tuple[str, bool, int]:
    """The text up to its end, as it comes some tokens at a time, and how it ended."""
    tokens = TOKENIZER.encode_batch([text])[0].tolist()
    watched = _Watched(TOKENIZER, [], stop)
    parts, at = [], 0
    while at < len(tokens) and not watched.stopped:
        at = min(at + next(sizes), len(tokens))
        watched.look(tokens[:at])
        parts.append(watched.fresh())
        shown = "".join(parts)
        assert text.startswith(shown)
        assert not watched.stopped or shown == watched.text
    watched.look(tokens[:at], last=True)
    parts.append(watched.fresh(last=True))
    assert "".join(parts) == watched.text
    return watched.text, watched.stopped, watched._seen


def _ones():
    while True:
        yield 1


@pytest.mark.parametrize(
    ("text", "stop", "end"),
    [
        ("xxabcxx", ("b", "abc"), 2),  # the second is complete first, and begins later
        ("xxabcxx", ("abc", "b"), 2),
        ("xxabdxx", ("b", "abc"), 3),  # the other was only begun
        ("xxab", ("b", "abc"), 3),  # ... when the tokens ended
        ("xxa", ("b", "abc"), 3),
        ("aab", ("aab", "ab"), 0),
        ("a b c", ("c", "b", "a"), 0),
        ("é€x€y", ("x", "€x€"), 1),  # bytes of a character come one by one
        ("é€x€y", ("x€z", "€y"), 3),
    ],
)
def test_the_stop_string_that_begins_first_ends_the_text(text, stop, end):
    found, _, _ = _read(text, stop, _ones())
    assert found == text[:end]


def test_the_end_is_the_first_of_the_whole_text_however_it_comes():
    draw = random.Random(0)

    def sizes():
        while True:
            yield draw.randint(1, 5)

    ended = 0
    for _ in range(1000):
        text = "".join(draw.choice("ab€") for _ in range(draw.randint(1, 16)))
        stop = tuple(
            "".join(draw.choice("ab€") for _ in range(draw.randint(1, 5)))
            for _ in range(draw.randint(1, 4))
        )
        places = [text.find(s) for s in stop if s in text]
        want = text[: min(places)] if places else text
        for way in (_ones(), sizes()):
            found, stopped, _ = _read(text, stop, way)
            assert (found, stopped) == (want, bool(places)), (text, stop)
        ended += bool(places)
    assert 200 < ended < 990


def test_the_tokens_counted_end_where_the_stop_string_was_decided():
    assert _read("xxabcxx", ("ab",), _ones())[2] == 4
    assert _read("xxabdxx", ("b", "abc"), iter([7]))[2] == 5


def test_no_prompts_are_no_texts():
    config = tiny_config()
    params = ModelFunctions(config).init(0)
    made = TextGenerator(config, params, TOKENIZER, TextSettings(max_tokens=2))
    assert list(made.texts([])) == []

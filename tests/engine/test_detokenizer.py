from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.detokenizer import Detokenizer
from engine.tokenizer import Tokenizer

EOS_ID = 400


@dataclass(frozen=True)
class ByteTokens:
    """A made-up vocabulary: token i stands for `pieces[i]`."""

    pieces: tuple[bytes, ...]
    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    first_token_bytes = token_bytes


@dataclass(frozen=True)
class Case:
    """A choice's tokens, one piece of bytes each, and how they are detokenized."""

    pieces: tuple[bytes, ...]
    special_ids: frozenset[int]
    checks: tuple[bool, ...]
    """`check_stop` of each push."""
    releases: tuple[bool, ...]
    """Whether `release(final=False)` is called after each push."""
    stop: tuple[str, ...]
    include_stop: bool
    skip_special: bool


@dataclass(frozen=True)
class Outcome:
    """What should come out: each token's text, what matched, and when."""

    texts: list[str]
    stop: str | None
    stop_push: int | None


def oracle(case: Case) -> Outcome:
    """The definition: decode everything from scratch, look at every character."""
    shown = [
        b"" if case.skip_special and index in case.special_ids else piece
        for index, piece in enumerate(case.pieces)
    ]
    owners: list[int] = []
    text = ""
    for index in range(len(shown)):
        # Decode all bytes so far, but for an unfinished last character.
        text = complete_text(b"".join(shown[: index + 1]))
        owners += [index] * (len(text) - len(owners))
        matches = [
            (start, number)
            for number, stop in enumerate(case.stop)
            for start in range(len(text) - len(stop) + 1)
            if text[start : start + len(stop)] == stop and owners[start + len(stop) - 1] == index
        ]
        if matches and case.checks[index]:
            start, number = min(matches)
            stop = case.stop[number]
            end = start + len(stop) if case.include_stop else start
            return Outcome(split(text[:end], owners, len(shown)), stop, index)
    whole = b"".join(shown).decode("utf-8", "replace")
    owners += [max(i for i, piece in enumerate(shown) if piece)] if whole != text else []
    return Outcome(split(whole, owners, len(shown)), None, None)


UNFINISHED = frozenset(
    encoded[:size]
    for code in range(0, 0x110000, 64)  # the last of a character's bytes is left out anyway
    if not 0xD800 <= code < 0xE000
    for encoded in [chr(code).encode()]
    for size in range(1, len(encoded))
)
"""Every beginning of a character in UTF-8."""


def complete_text(raw: bytes) -> str:
    """The characters of `raw` that no further bytes can change."""
    for size in (1, 2, 3):
        if raw[-size:] in UNFINISHED and size <= len(raw):
            return raw[:-size].decode("utf-8", "replace")
    return raw.decode("utf-8", "replace")


def split(text: str, owners: list[int], num_tokens: int) -> list[str]:
    texts = [""] * num_tokens
    for character, owner in zip(text, owners, strict=False):
        texts[owner] += character
    return texts


def run(case: Case) -> Outcome:
    """Drive the detokenizer, checking all the way that what it released is decided."""
    vocabulary = ByteTokens(case.pieces, case.special_ids)
    detokenizer = Detokenizer(vocabulary, case.stop, case.include_stop, case.skip_special)
    released: list[str] = []
    matched: str | None = None
    stop_push: int | None = None
    for index in range(len(case.pieces)):
        stop = detokenizer.push(index, case.checks[index])
        if stop is not None:
            assert matched is None, "a second match"
            matched, stop_push = stop, index
        if case.releases[index]:
            released += detokenizer.release(final=False)
            assert len(released) <= index + 1
    released += detokenizer.release(final=True)
    assert detokenizer.release(final=True) == []
    return Outcome(released, matched, stop_push)


@st.composite
def cases(draw: st.DrawFn, alphabet: str = "ab", max_stops: int = 4) -> Case:
    """Short texts over few letters, so that stop strings match and nearly match often."""
    characters = st.sampled_from(alphabet)
    raw = draw(st.text(characters, max_size=30)).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=20)))
    bounds = [0, *cuts, len(raw)]
    pieces = tuple(raw[a:b] for a, b in pairwise(bounds))
    num = len(pieces)
    flags = st.lists(st.booleans(), min_size=num, max_size=num).map(tuple)
    return Case(
        pieces=pieces,
        special_ids=frozenset(draw(st.sets(st.integers(0, num - 1), max_size=3))),
        checks=draw(st.one_of(st.just((True,) * num), flags)),
        releases=draw(st.one_of(st.just((True,) * num), flags)),
        stop=tuple(draw(st.lists(st.text(characters, min_size=1, max_size=6), max_size=max_stops))),
        include_stop=draw(st.booleans()),
        skip_special=draw(st.booleans()),
    )


class TestAgainstTheOracle:
    @settings(max_examples=300, deadline=None)
    @given(cases())
    def test_letters(self, case: Case) -> None:
        assert run(case) == oracle(case)

    @settings(max_examples=300, deadline=None)
    @given(cases(alphabet="aé日😀\0\ufffd\u0301"))
    def test_characters_of_all_lengths(self, case: Case) -> None:
        assert run(case) == oracle(case)

    @settings(max_examples=300, deadline=None)
    @given(
        st.lists(
            st.binary(max_size=5)
            | st.sampled_from(
                [b"\xf0", b"\x9f\x98", b"\xe6\x97", b"\xed\xa0", b"\xc0", b"\xf4\x90"]
            ),
            min_size=1,
            max_size=12,
        ),
        st.lists(st.sampled_from(["\ufffd", "a\ufffd", "\ufffd\ufffd\ufffd"]), max_size=2),
        st.booleans(),
    )
    def test_bytes_that_are_not_utf8(
        self, pieces: list[bytes], stop: list[str], include_stop: bool
    ) -> None:
        num = len(pieces)
        case = Case(
            pieces=tuple(pieces),
            special_ids=frozenset(),
            checks=(True,) * num,
            releases=(True,) * num,
            stop=tuple(stop),
            include_stop=include_stop,
            skip_special=False,
        )
        assert run(case) == oracle(case)


def detokenize(
    *pieces: str | bytes, stop: tuple[str, ...] = (), include: bool = False
) -> tuple[Detokenizer, Iterator[int]]:
    """A detokenizer for a vocabulary of these pieces, and their ids in order."""
    raw = tuple(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    detokenizer = Detokenizer(ByteTokens(raw), stop, include, skip_special_tokens=True)
    return detokenizer, iter(range(len(raw)))


class TestHoldingBack:
    def test_text_flows_where_nothing_can_match(self) -> None:
        detokenizer, ids = detokenize("ab", "cd", stop=("xyz",))
        for text in ("ab", "cd"):
            assert detokenizer.push(next(ids)) is None
            assert detokenizer.release(final=False) == [text]

    def test_a_possible_beginning_is_held_until_decided(self) -> None:
        detokenizer, ids = detokenize("ab", "c", "d", "", "xx", stop=("bcdx!",))
        for _ in range(4):
            assert detokenizer.push(next(ids)) is None
            assert detokenizer.release(final=False) == []
        detokenizer.push(next(ids))
        assert detokenizer.release(final=False) == ["ab", "c", "d", "", "xx"]

    def test_only_the_window_is_held(self) -> None:
        # "ababab…" keeps an ending that may start "abac"; all before it goes out.
        detokenizer, ids = detokenize(*["a", "b"] * 20, stop=("abac",))
        num_released = 0
        for index in ids:
            detokenizer.push(index)
            num_released += len(detokenizer.release(final=False))
            assert index + 1 - num_released <= 3

    def test_a_token_inside_a_character_is_held(self) -> None:
        emoji = "😀".encode()
        detokenizer, ids = detokenize(b"a" + emoji[:1], emoji[1:3], emoji[3:] + b"b")
        released = []
        for _ in range(3):
            detokenizer.push(next(ids))
            released.append(detokenizer.release(final=False))
        assert released == [[], ["a"], ["", "😀b"]]

    def test_an_incomplete_end_is_replaced_on_the_last_token_with_bytes(self) -> None:
        vocabulary = ByteTokens((b"a", b"\xf0\x9f", b"\x98", b"<eos>"), frozenset({3}))
        detokenizer = Detokenizer(vocabulary, (), False, True)
        for index in range(4):
            detokenizer.push(index)
        assert detokenizer.release(final=False) == ["a", ""]
        assert detokenizer.release(final=True) == ["\ufffd", ""]

    def test_final_releases_a_possible_beginning(self) -> None:
        detokenizer, ids = detokenize("ab", "c", stop=("bcd",))
        for index in ids:
            detokenizer.push(index)
        assert detokenizer.release(final=False) == []
        assert detokenizer.release(final=True) == ["ab", "c"]


class TestStopStrings:
    @pytest.mark.parametrize(
        ("include", "texts"), [(False, ["x", "a", "", ""]), (True, ["x", "ab", "c", "d"])]
    )
    def test_the_text_is_cut_across_tokens(self, include: bool, texts: list[str]) -> None:
        detokenizer, ids = detokenize("x", "ab", "c", "d!", stop=("bcd",), include=include)
        assert [detokenizer.push(index) for index in ids] == [None, None, None, "bcd"]
        assert detokenizer.release(final=False) == texts

    def test_the_earliest_start_wins_then_the_first_listed(self) -> None:
        for stop, expected in (
            (("bc", "abcd"), "abcd"),
            (("ab", "abc"), "ab"),
            (("abc", "ab"), "abc"),
            (("d", "cd", "b"), "b"),
        ):
            detokenizer, ids = detokenize("xabcd", stop=stop)
            assert detokenizer.push(next(ids)) == expected

    def test_a_failed_match_leaves_the_longest_beginning(self) -> None:
        # After "aabaaa" the b refutes the first start, but "aab" has begun anew.
        detokenizer, ids = detokenize(*"aabaaabaaac", stop=("aabaaac",))
        assert [detokenizer.push(index) for index in ids] == [None] * 10 + ["aabaaac"]
        assert "".join(detokenizer.release(final=True)) == "aaba"

    def test_what_a_token_completes_is_not_put_off(self) -> None:
        # "abcd" might have started earlier, but "bc" is complete now.
        detokenizer, ids = detokenize("abc", "d", stop=("abcd", "bc"))
        assert detokenizer.push(next(ids)) == "bc"
        assert detokenizer.release(final=True) == ["a"]

    def test_unchecked_text_may_begin_a_match_but_not_end_it(self) -> None:
        detokenizer, ids = detokenize("ab", "ab", "a", "b", stop=("ab", "ba"))
        assert detokenizer.push(next(ids), check_stop=False) is None
        assert detokenizer.push(next(ids), check_stop=False) is None
        assert detokenizer.push(next(ids)) == "ba"
        assert detokenizer.release(final=True) == ["ab", "a", ""]

    def test_after_a_match_the_text_is_closed(self) -> None:
        detokenizer, ids = detokenize("a", "stop", "b", "stop", stop=("stop",))
        assert [detokenizer.push(index) for index in ids] == [None, "stop", None, None]
        assert detokenizer.release(final=True) == ["a", "", "", ""]

    def test_an_incomplete_character_after_the_stop_is_dropped(self) -> None:
        detokenizer, ids = detokenize(b"stop\xf0\x9f", stop=("stop",), include=True)
        assert detokenizer.push(next(ids)) == "stop"
        assert detokenizer.release(final=True) == ["stop"]

    def test_an_empty_stop_string_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must not be empty"):
            detokenize("a", stop=("",))


class TestWithARealTokenizer:
    @settings(deadline=None)
    @given(
        st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the cat日本猫é😀"))
        | st.lists(st.integers(0, EOS_ID), max_size=20),
        st.integers(0, 60),
        st.booleans(),
    )
    @example("the cat<|endoftext|>日本😀", 60, True)
    def test_released_text_is_the_decoded_text(
        self, tokenizer: Tokenizer, source: str | list[int], num_tokens: int, skip: bool
    ) -> None:
        ids = tokenizer.encode(source) if isinstance(source, str) else source
        ids = ids[:num_tokens]
        detokenizer = Detokenizer(tokenizer, (), False, skip)
        texts: list[str] = []
        for index in ids:
            detokenizer.push(index)
            texts += detokenizer.release(final=False)
            if isinstance(source, str) and "\ufffd" not in source:
                assert "\ufffd" not in "".join(texts), "a broken character was released"
        texts += detokenizer.release(final=True)
        assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=skip)
        assert len(texts) == len(ids)

    @settings(deadline=None)
    @given(st.data())
    def test_a_stop_string_cuts_the_decoded_text(
        self, tokenizer: Tokenizer, data: st.DataObject
    ) -> None:
        text = data.draw(st.text(st.sampled_from("the cat日本猫é😀\n"), min_size=1, max_size=40))
        start = data.draw(st.integers(0, len(text) - 1))
        stop = text[start : data.draw(st.integers(start + 1, len(text)))]
        detokenizer = Detokenizer(tokenizer, (stop,), False, True)
        matches = [detokenizer.push(index) for index in tokenizer.encode(text)]
        assert [match for match in matches if match is not None] == [stop]
        assert "".join(detokenizer.release(final=False)) == text[: text.index(stop)]

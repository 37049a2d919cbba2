"""Texts without regard to case: how they are folded, where a match stands in the original, and the signature of many.

Folding is Unicode's full case folding; beside it full-width letters are their plain ones, and the four Turkish i's are one.
Composed and decomposed accents stay apart. Rule: it goes letter by letter, so what was folded in pieces or as a whole is the
same text, and each letter of a folded text has its owner in the original.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from operator import add
from typing import Final
from zlib import crc32

# Stands between the texts of a block, so no folded text holds it.
SEPARATOR: Final = "\x1e"
# Some 3,000 different pairs and triples of letters are in 64 texts: a bit in five is set. Four rows with a signature fill a page.
SIGNATURE_BITS: Final = 15_000
MAX_PROBES: Final = 8
# Of a signature, what is done at a time: a quarter of a millisecond.
PIECE_CHARS: Final = 1_500

_PLAIN: Final = {0xFF01 + at: 0x21 + at for at in range(94)} | {0x3000: " ", ord(SEPARATOR): " ", 0x131: "i"}
_DOT_ABOVE: Final = "\u0307"
_DOTTED: Final = re.compile(f"i{_DOT_ABOVE}+")


def fold(text: str) -> str:
    """The text as it is compared. It may be longer than the original: `ß` is `ss`."""
    if text.isascii():
        return text.lower().replace(SEPARATOR, " ")
    folded = text.translate(_PLAIN).casefold()
    return _DOTTED.sub("i", folded) if _DOT_ABOVE in folded else folded


def matches(text: str, wanted: str, *, limit: int) -> list[tuple[int, int]]:
    """Where a folded, non-empty `wanted` stands in a text: [start, end) in its code points, apart and in order, `limit` at most.

    A letter that only in part belongs to a match (`ß` for `s`) is in it whole.
    """
    folded = fold(text)
    at = folded.find(wanted)
    if at < 0:
        return []
    begins, owners = _places(text, folded)
    found: list[tuple[int, int]] = []
    while at >= 0 and len(found) < limit:
        end = owners[at + len(wanted) - 1] + 1
        while end < len(text) and begins[end] == begins[end + 1]:
            end += 1  # a dot above that folding has taken from this i
        found.append((owners[at], end))
        at = folded.find(wanted, begins[end])
    return found


def _places(text: str, folded: str) -> tuple[Sequence[int], Sequence[int]]:
    """Where each letter begins in the folded text, with its end; and which letter each place of the folded text is of."""
    if text.isascii():
        return range(len(text) + 1), range(len(text))
    begins = [0]
    owners: list[int] = []
    for owner, letter in enumerate(text):
        after_i = bool(owners) and folded[len(owners) - 1] == "i"
        owners += [owner] * (0 if letter == _DOT_ABOVE and after_i else len(fold(letter)))
        begins.append(len(owners))
    return begins, owners


# -- signatures -----------------------------------------------------------------------------------------------------------


def signature_of(folded: str) -> bytes:
    """The bit map of all words of a folded text. Some words that are not there are in it too; none that is there is missing."""
    signing = Signing(folded)
    deque(signing, maxlen=0)
    return signing.signature


class Signing:
    """A signature that is made piece by piece, for who has others to think of in between; whole once it has been iterated over."""

    def __init__(self, folded: str) -> None:
        # Each word once. Letters on both sides of a space are in no word, so in no probe.
        self._words = " ".join(set(folded.split()))
        self._bits = bytearray((SIGNATURE_BITS + 7) // 8)

    def __iter__(self) -> Iterator[None]:
        for at in range(0, len(self._words), PIECE_CHARS):
            self._add(self._words[at : at + PIECE_CHARS + 2])
            yield

    def _add(self, piece: str) -> None:
        bits = self._bits
        pairs = list(map(add, piece, piece[1:]))
        for gram in {*pairs, *map(add, pairs, piece[2:])}:
            if " " not in gram:
                bit = crc32(gram.encode()) % SIGNATURE_BITS
                bits[bit >> 3] |= 1 << (bit & 7)

    @property
    def signature(self) -> bytes:
        return bytes(self._bits)


def probes_of(wanted: str) -> list[int]:
    """Bits that are set in the signature of each text that holds a folded `wanted`: MAX_PROBES at most, perhaps none."""
    bits = list(dict.fromkeys(_bit(gram) for word in wanted.split() for gram in _grams(word)))
    step = max(1.0, len(bits) / MAX_PROBES)
    return [bits[int(at * step)] for at in range(min(len(bits), MAX_PROBES))]


def _grams(word: str) -> Iterator[str]:
    size = min(3, len(word))
    return (word[at : at + size] for at in range(len(word) - size + 1)) if size > 1 else iter(())


def _bit(gram: str) -> int:
    return crc32(gram.encode()) % SIGNATURE_BITS

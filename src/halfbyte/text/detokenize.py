"""Tokens to text as they come, for every decoder that a tokenizer.json can describe.

A decoder is a chain of steps. Each turns a list of pieces into a list of pieces; the last list, joined, is the text.
Most steps look at one piece at a time, some join all pieces into one. Here each step becomes a `Stage` that passes on
what no later token can change and holds back the rest. What all stages pass on, joined, is what the whole chain makes
of the whole list. A step that could change anything at any time holds everything back until the end.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x[+0-9A-Fa-f][0-9A-Fa-f]>")

Step = Mapping[str, Any]
"""One step of a decoder, as tokenizer.json describes it."""


class Stage(Protocol):
    """One step of a decoder, fed piece by piece."""

    def push(self, piece: str) -> list[str]:
        """Pieces that have become certain."""
        ...

    def finish(self) -> list[str]:
        """All that was held back."""
        ...


class Detokenizer:
    """Turns tokens, as the vocabulary spells them, into text.

    Args:
        steps: From `decoder_steps`.
        spelt_in_bytes: Tells whether the vocabulary has only tokens of GPT-2's alphabet; asked only where it matters.
    """

    def __init__(self, steps: Sequence[Step], spelt_in_bytes: Callable[[], bool]) -> None:
        self._stages = _stages(steps, spelt_in_bytes)

    def push(self, token: str) -> str:
        """Text that has become certain with this token."""
        return "".join(self._through(0, [token]))

    def finish(self) -> str:
        """All text still held back."""
        text = [piece for index, stage in enumerate(self._stages) for piece in self._through(index + 1, stage.finish())]
        return "".join(text)

    def _through(self, first: int, pieces: list[str]) -> list[str]:
        for stage in self._stages[first:]:
            pieces = [out for piece in pieces for out in stage.push(piece)]
        return pieces


def decoder_steps(backend: tokenizers.Tokenizer) -> tuple[Step, ...]:
    """The steps of a tokenizer's decoder, sequences laid flat; without a decoder, tokens stand apart by spaces."""
    if backend.decoder is None:
        return ({"type": None},)
    return tuple(_flat(json.loads(backend.decoder.__getstate__())))


def spelt_in_bytes(token: str) -> bool:
    """Whether each character of a token stands for one byte (GPT-2's alphabet)."""
    return _alphabet().keys() >= set(token)


def stands_for_bytes(steps: Sequence[Step], token: str) -> bytes | None:
    """The bytes that a decoder makes of a token, where they do not depend on the tokens around it; else None."""
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
        return _token_bytes(token)
    byte = _byte(token) if "ByteFallback" in kinds else None
    return None if byte is None else bytes([byte])


def _flat(step: Step) -> list[Step]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for part in step["decoders"] for inner in _flat(part)]


def _stages(steps: Sequence[Step], spelt: Callable[[], bool]) -> list[Stage]:
    """A stage for each step; `joined` says that a step before has made one piece of all."""
    stages: list[Stage] = []
    joined = False
    for place, step in enumerate(steps):
        before_bytes = step["type"] == "Fuse" and place + 1 < len(steps) and steps[place + 1]["type"] == "ByteLevel"
        if before_bytes and not joined and spelt():
            continue  # bytes come out the same from one long piece
        stages.append(_joined_stage(step) if joined else _stage(step))
        joined = joined or step["type"] in ("Fuse", "ByteLevel")
    return stages


def _stage(step: Step) -> Stage:
    """The stage of a step that sees the pieces one by one."""
    match step["type"]:
        case None:
            return _Each(lambda piece: piece, lambda piece: " " + piece)
        case "Fuse":
            return _Each(lambda piece: piece)
        case "ByteLevel":
            return _ByteLevel()
        case "ByteFallback":
            return _ByteFallback()
        case "BPEDecoder":
            decode = _decoder(step)
            return _LastDiffers(lambda piece: decode([piece, ""]), lambda piece: decode([piece]))
        case "CTC":
            decode = _decoder(step)
            return _Distinct(lambda piece: decode([piece]))
        case "Replace" | "Strip" | "Metaspace" | "WordPiece":
            decode = _decoder(step)
            return _Each(lambda piece: decode([piece]), lambda piece: decode(["", piece]))
        case _:
            return _Whole(_decoder(step))


def _joined_stage(step: Step) -> Stage:
    """The stage of a step that sees one piece, of which `push` gets part after part."""
    decode = _decoder(step)
    match step["type"]:
        case "Fuse":
            return _Each(lambda part: part)
        case "Metaspace":
            return _Each(lambda part: decode([part]))
        case "WordPiece" if not step["cleanup"]:
            return _Each(lambda part: part)
        case "Replace" if step["pattern"].get("String"):
            return _Replaced(step["pattern"]["String"], step["content"])
        case "Strip" if step["stop"] == 0:
            return _Stripped(step["content"], step["start"])
        case _:
            return _Whole(decode)


def _decoder(step: Step) -> Callable[[list[str]], str]:
    """The library's own decoder of one step."""
    from tokenizers import decoders

    decoder = decoders.Fuse()
    decoder.__setstate__(json.dumps(step).encode())
    return decoder.decode


class _Each:
    """A step that changes each piece by itself, perhaps the first one in another way than the others."""

    def __init__(self, first: Callable[[str], str], later: Callable[[str], str] | None = None) -> None:
        self._change = first
        self._later = later or first

    def push(self, piece: str) -> list[str]:
        change, self._change = self._change, self._later
        return [change(piece)]

    def finish(self) -> list[str]:
        return []


class _LastDiffers:
    """A step that changes the last piece in another way than the others."""

    def __init__(self, change: Callable[[str], str], last: Callable[[str], str]) -> None:
        self._change = change
        self._last = last
        self._held: list[str] = []

    def push(self, piece: str) -> list[str]:
        held, self._held = self._held, [piece]
        return [self._change(before) for before in held]

    def finish(self) -> list[str]:
        return [self._last(piece) for piece in self._held]


class _Distinct:
    """CTC: of equal pieces in a row one stays; pieces that become empty are left out."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change
        self._before: str | None = None

    def push(self, piece: str) -> list[str]:
        before, self._before = self._before, piece
        text = "" if piece == before else self._change(piece)
        return [text] if text else []

    def finish(self) -> list[str]:
        return []


class _ByteFallback:
    """Runs of byte tokens (`<0xE2>`) become characters if all of a run is valid UTF-8, else U+FFFD for each byte."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, piece: str) -> list[str]:
        byte = _byte(piece)
        if byte is None:
            return [*self.finish(), piece]
        self._run.append(byte)
        return []

    def finish(self) -> list[str]:
        run, self._run = self._run, bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class _ByteLevel:
    """Pieces spelt in GPT-2's alphabet: each is a few bytes of UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: str) -> list[str]:
        return [self._decoder.decode(_token_bytes(piece))]

    def finish(self) -> list[str]:
        return [self._decoder.decode(b"", final=True)]


class _Replaced:
    """Replaces a string in one long text; its beginning at the end of a part is held back."""

    def __init__(self, old: str, new: str) -> None:
        self._old = old
        self._new = new
        self._held = ""

    def push(self, piece: str) -> list[str]:
        *whole, rest = (self._held + piece).split(self._old)
        size = overlap(rest, self._old)
        self._held = rest[len(rest) - size :]
        return ["".join(text + self._new for text in whole) + rest[: len(rest) - size]]

    def finish(self) -> list[str]:
        held, self._held = self._held, ""
        return [held]


class _Stripped:
    """Takes a character away from the start of one long text, up to `most` times."""

    def __init__(self, character: str, most: int) -> None:
        self._character = character
        self._most = most

    def push(self, piece: str) -> list[str]:
        rest = piece.lstrip(self._character) if self._most else piece
        cut = min(len(piece) - len(rest), self._most)
        self._most = 0 if cut < len(piece) else self._most - cut
        return [piece[cut:]]

    def finish(self) -> list[str]:
        return []


class _Whole:
    """A step that may change anything until the last piece is there."""

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        self._decode = decode
        self._held: list[str] = []

    def push(self, piece: str) -> list[str]:
        self._held.append(piece)
        return []

    def finish(self) -> list[str]:
        return [self._decode(["".join(self._held)])]


def overlap(text: str, wanted: str) -> int:
    """How many characters at the end of a text could be the beginning of the wanted one, which is not in it."""
    longest = min(len(text), len(wanted) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(wanted[:size])), 0)


def _byte(piece: str) -> int | None:
    """The byte that `<0xE2>` stands for."""
    return int(piece[3:5], 16) if _BYTE_TOKEN.fullmatch(piece) else None


@lru_cache(maxsize=1 << 16)
def _token_bytes(token: str) -> bytes:
    """A token's bytes; one with a character outside the alphabet (an added token) is plain text."""
    alphabet = _alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, reversed: printable bytes stand for themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}

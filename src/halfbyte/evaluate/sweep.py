"""Methods × window lengths: quantize a model in several ways and measure each at every length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.folder import open_checkpoint
from halfbyte.errors import UsageError
from halfbyte.evaluate.perplexity import Perplexity, Tick, perplexity
from halfbyte.evaluate.scorer import Scorer
from halfbyte.evaluate.table import Row, Table
from halfbyte.evaluate.texts import read_text, tokens_of
from halfbyte.evaluate.windows import Protocol
from halfbyte.models import build_spec
from halfbyte.quantize import METHODS, quantize

ORIGINAL = "bf16"


def sweep(
    source: Path, methods: Sequence[str], windows: Sequence[int], text: str, *, calibration: Path, group_size: int,
    keep: Path, max_tokens: int | None, device: str, tick: Tick,
) -> Table:  # fmt: skip
    """The table of a model. Quantized models are kept in folders under `keep`, and used again if they are there.

    All methods quantize the decoder layers to 4 bits with zero points and leave table and output matrix as they are,
    except `awq+`, which is AWQ with those in 4 bits and groups of 32.

    Raises:
        UsageError: A method is unknown, or the text is too short.
    """
    unknown = [name for name in methods if name not in (ORIGINAL, *METHODS)]
    if unknown:
        raise UsageError(f"The method {unknown[0]!r} is unknown.", f"Known are {', '.join((ORIGINAL, *METHODS))}.")
    rows, tokens = [], 0
    for name in methods:
        folder = source if name == ORIGINAL else _quantized(source, name, calibration, group_size, keep, tick)
        found = [_measure(folder, window, text, max_tokens, device, tick) for window in windows]
        rows.append(Row(name, _bits(folder), tuple(p.ppl for p in found), tuple(p.stderr for p in found)))
        tokens = max(p.tokens for p in found)
    return Table(tuple(windows), tuple(rows), text, tokens)


def _quantized(source: Path, method: str, calibration: Path, group_size: int, keep: Path, tick: Tick) -> Path:
    folder = keep / f"{source.name}-{method}-g{group_size}"
    if not folder.is_dir():
        bits: dict[str, Any] = {} if method == "awq+" else {"embed_bits": 16, "head_bits": 16}
        quantize(
            source, folder, method=method, group_size=group_size, zero_points=True, calibration=calibration,
            progress=lambda what, done, total: tick(f"{method}: {what}", done, total), **bits,
        )  # fmt: skip
    return folder


def _measure(folder: Path, window: int, text: str, most: int | None, device: str, tick: Tick) -> Perplexity:
    scorer = Scorer(folder, window, device=device)
    return perplexity(scorer, tokens_of(scorer.model.tokenizer, read_text(text), most), Protocol(window=window), tick)


def _bits(folder: Path) -> float:
    """Stored bits a weight, of the tensors that text generation needs."""
    checkpoint = open_checkpoint(folder)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    stored = sum(checkpoint.format(name).nbytes(shape) for name, shape in spec.shapes.items())
    return round(8 * stored / spec.parameters, 4)

"""Methods × window lengths: quantize a model in several ways and measure each at every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.manifest import MANIFEST_NAME
from halfbyte.errors import UsageError
from halfbyte.evaluation.answers import AT_ONCE, Answers, Question, compare, right_answers
from halfbyte.evaluation.divergence import Divergence, divergences
from halfbyte.evaluation.perplexity import Tick, perplexity
from halfbyte.evaluation.record import bits_per_weight
from halfbyte.evaluation.scorer import Scorer
from halfbyte.evaluation.table import Row, Table
from halfbyte.evaluation.texts import read_text, tokens_of
from halfbyte.evaluation.windows import Ids, Protocol
from halfbyte.model import load
from halfbyte.options import RunOptions
from halfbyte.quantization import METHODS, quantize

ORIGINAL = "bf16"

Figure = tuple[float, float | None]
"""A perplexity and its standard error, which one token alone does not have."""


@dataclass(frozen=True)
class Sweep:
    """The models, texts and settings of a table.

    Attributes:
        methods: Names of methods, or folders of models that were quantized before.
        windows: Window lengths, ascending.
        text: A file, or `wikitext-2`; its first `max_tokens` tokens.
        calibration: For the methods that need text.
        group_size: Group size of the decoder layers.
        keep: Folder for the quantized models; existing ones are reused.
        questions: What to ask each model, if anything.
        run_options: How the models are run.
    """

    source: Path
    methods: Sequence[str]
    windows: Sequence[int]
    text: str
    calibration: Path
    group_size: int
    keep: Path
    max_tokens: int | None = None
    run_options: RunOptions = field(default_factory=RunOptions)
    questions: Sequence[Question] = ()

    def run(self, tick: Tick) -> Table:
        """The table, the original first. Its models are in memory together.

        Methods quantize the decoder layers to 4 bits with zero points and leave table and output matrix as they are,
        except `awq+`, which is AWQ with those in 4 bits and groups of 32.

        Raises:
            UsageError: A method is unknown, or the text is too short.
        """
        names = [name for name in self.methods if name != ORIGINAL]
        unknown = next(
            (name for name in names if name not in METHODS and not (Path(name) / MANIFEST_NAME).is_file()), ""
        )
        if unknown:
            raise UsageError(
                f"There is no method {unknown!r}.",
                f"Choose from {', '.join((ORIGINAL, *METHODS))}, and folders of quantized models.",
            )
        folders = [self.source, *(self._quantized(name, tick) for name in names)]
        ids = self._ids()
        columns = [self._column(folders, window, ids, tick) for window in self.windows[:-1]]
        last, moved = self._last_column(folders, ids, tick)
        answers = self._answers(folders, tick)
        figures = zip(*columns, last, strict=True)
        shown = [ORIGINAL, *(Path(name).name for name in names)]
        rows = [
            Row(
                name,
                bits_per_weight(folder),
                tuple(ppl for ppl, _ in row),
                tuple(stderr for _, stderr in row),
                apart,
                right,
            )
            for name, folder, row, apart, right in zip(shown, folders, figures, moved, answers, strict=True)
        ]
        return Table(tuple(self.windows), tuple(rows), self.text, len(ids))

    def _quantized(self, method: str, tick: Tick) -> Path:
        """The folder of a method's model, which is made if it does not exist."""
        if method not in METHODS:
            return Path(method)
        folder = self.keep / f"{self.source.name}-{method}-g{self.group_size}"
        if not folder.is_dir():
            more: dict[str, Any] = {} if method == "awq+" else {"embed_bits": 16, "head_bits": 16}
            more |= {} if method == "rtn" else {"calibration": self.calibration}
            quantize(
                self.source, folder, method=method, group_size=self.group_size, zero_points=True,
                progress=lambda what, *of: tick(f"{method}: {what}", *of), **more,
            )  # fmt: skip
        return folder

    def _scorer(self, folder: Path, window: int) -> Scorer:
        return Scorer(folder, window, self.run_options)

    def _ids(self) -> Ids:
        scorer = self._scorer(self.source, min(self.windows))
        return tokens_of(scorer.model.tokenizer, read_text(self.text), self.max_tokens)

    def _column(self, folders: list[Path], window: int, ids: Ids, tick: Tick) -> list[Figure]:
        found = [perplexity(self._scorer(folder, window), ids, Protocol(window=window), tick) for folder in folders]
        return [(each.ppl, each.stderr) for each in found]

    def _last_column(self, folders: list[Path], ids: Ids, tick: Tick) -> tuple[list[Figure], list[Divergence | None]]:
        """The column of the longest window, with all models side by side, and how far each is from the original."""
        window = self.windows[-1]
        if len(folders) == 1:
            return self._column(folders, window, ids, tick), [None]
        base, *others = (self._scorer(folder, window) for folder in folders)
        found = divergences(others, base, ids, Protocol(window=window), tick)
        first = (found[0].ppl_base, found[0].ppl_base_stderr)
        return [first, *((each.ppl, each.ppl_stderr) for each in found)], [None, *found]

    def _answers(self, folders: list[Path], tick: Tick) -> list[Answers | None]:
        if not self.questions:
            return [None] * len(folders)
        asked = list(self.questions)
        right = [right_answers(load(folder, self.run_options, sequences=AT_ONCE), asked, tick) for folder in folders]
        return [compare(right[0], None), *(compare(each, right[0]) for each in right[1:])]

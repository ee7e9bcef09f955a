"""LoRA adapters as PEFT saves them: a folder with `adapter_config.json` and `adapter_model.safetensors`.

An adapter changes matrices of a model by products of two small ones: W + scale · B · A, with A `[rank, columns]` and
B `[rows, rank]` (arXiv 2106.09685). The scale is alpha / rank, or alpha / √rank where it is rank-stabilised
(arXiv 2312.03732). With DoRA each row of the sum is then given a length of its own (arXiv 2402.09353).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.base import DENSE
from halfbyte.checkpoint.checks import damaged, read_json, shown
from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.checkpoint.shards import PICKLES
from halfbyte.errors import InvalidModelError, ModelNotFoundError, UnsupportedModelError
from halfbyte.formats import Weight, get_format
from halfbyte.models.config import Config
from halfbyte.models.spec import ModelSpec

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"

_HARMLESS = frozenset(
    {
        # Where it comes from and how it was trained.
        "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode", "lora_dropout",
        "megatron_core", "peft_version", "revision", "runtime_config", "task_type", "velora_config",
        # How A and B began; those that also change the base are refused by `init_lora_weights`.
        "corda_config", "eva_config", "loftq_config", "lora_ga_config",
        # Which modules it changes: the tensors say so themselves.
        "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules",
        # PEFT sets it to false for linear layers, and Halfbyte's models have no others.
        "fan_in_fan_out",
        # Without its flag it says nothing.
        "qalora_group_size",
    }
)  # fmt: skip
_FRESH = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin training that leave the base as it is."""
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.weight)?")
_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
"""What stands before `layers` in versions of transformers and kinds of models."""
_LONGEST_PATTERN, _MOST_REPEATS = 200, 3
_OTHER = "Use an adapter that was trained on this model."


@dataclass(frozen=True)
class Update:
    """What an adapter does to one matrix `[rows, columns]`, in float32.

    Attributes:
        a: `[rank, columns]`.
        b: `[rows, rank]`.
        scale: What b · a is multiplied by.
        magnitude: The length that each row has afterwards `[rows]`, with DoRA.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    scale: float
    magnitude: NDArray[np.float32] | None = None

    def apply(self, values: NDArray[np.float32], start: int) -> NDArray[np.float32]:
        """Rows of the matrix from `start` on, changed."""
        rows = slice(start, start + len(values))
        changed: NDArray[np.float32] = values + np.float32(self.scale) * (self.b[rows] @ self.a)
        if self.magnitude is not None:
            changed *= self.magnitude[rows, None] / np.linalg.norm(changed, axis=1, keepdims=True)
        return changed


@dataclass(frozen=True)
class _Module:
    """What the file holds for a module: its tensors by part, and what the configuration says about it."""

    tensors: Mapping[str, str]
    rank: int
    scale: float


class AdapterFolder:
    """An open adapter, whatever model it is for; its configuration and all headers are checked.

    Attributes:
        path: The folder.
        dora: Whether rows have lengths of their own.

    Raises:
        ModelNotFoundError: A file is not there.
        InvalidModelError: A file is damaged or contradicts the other.
        UnsupportedModelError: It is no LoRA adapter, asks for something that Halfbyte does not have, or has its weights
            only as a pickle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config = Config(_read_config(path), f"{path / ADAPTER_CONFIG_NAME}")
        self._base = self._config.text("base_model_name_or_path")
        _check(self._config)
        self.dora = self._config.flag("use_dora", False)
        self._file = _open_weights(path)
        self._modules = self._read_modules()

    @property
    def rank(self) -> int:
        """The largest rank of its updates."""
        return max(module.rank for module in self._modules.values())

    @property
    def base(self) -> str:
        """The model that it says it was trained on; may be empty."""
        return self._base

    @property
    def targets(self) -> tuple[str, ...]:
        """The last names of the modules that it changes, such as `q_proj`."""
        return tuple(sorted({module.rpartition(".")[2] for module in self._modules}))

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return sum(math.prod(entry.shape) for entry in self._file.entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors as stored."""
        return sum(entry.nbytes for entry in self._file.entries.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Number formats of its tensors."""
        return tuple(sorted({DENSE[entry.dtype] for entry in self._file.entries.values()}))

    def fitted(self, spec: ModelSpec) -> Adapter:
        """The adapter for a model.

        Raises:
            InvalidModelError: It is for another one; the first tensor that does not fit is named.
            UnsupportedModelError: It changes what Halfbyte cannot change: the embedding table.
        """
        matrices, ignored = {}, 0
        for name, module in self._modules.items():
            weight = _weight_of(name, spec)
            if weight is None:
                if not _is_ignored(name, spec):
                    self._refuse(module, f"the model has no module {shown(name)}")
                ignored += 1
                continue
            if weight == spec.embed:
                what = "the embedding table" + ", which is also the output matrix" * (weight == spec.lm_head)
                raise UnsupportedModelError(
                    f"{self.path} changes {what} ({weight}), which Halfbyte does not do.",
                    "Merge it into the model with PEFT (merge_and_unload), and load the result.",
                )
            self._check_shapes(module, weight, spec.shapes[weight])
            matrices[weight] = name
        if not matrices:
            raise InvalidModelError(f"{self.path} changes nothing of a {spec.model_type} model.", _OTHER)
        note = f"{self.path.name}: {ignored} modules that answers to texts do not need are left out."
        return Adapter(self, matrices, (note,) if ignored else ())

    def update(self, module: str) -> Update:
        """What it does to a module.

        Raises:
            InvalidModelError: A tensor holds NaN or infinity, or the file was cut short.
        """
        found = self._modules[module]
        values = {part: self._values(name) for part, name in found.tensors.items()}
        magnitude = values.get("magnitude_vector")
        return Update(values["A"], values["B"], found.scale, None if magnitude is None else magnitude.reshape(-1))

    def _values(self, name: str) -> NDArray[np.float32]:
        entry = self._file.entries[name]
        stored = Weight(get_format(DENSE[entry.dtype]), entry.shape, {"": self._file.tensor(name)})
        values = stored.decode()
        if not np.isfinite(values).all():
            raise InvalidModelError(
                f"{self._file.path}: the tensor {shown(name)} holds NaN or infinity.",
                "The adapter is damaged, or its training failed; download or train it again.",
            )
        return values

    def _read_modules(self) -> dict[str, _Module]:
        found: dict[str, dict[str, str]] = {}
        for name, entry in self._file.entries.items():
            match = _TENSOR.fullmatch(name)
            if match is None:
                raise UnsupportedModelError(
                    f"{self._file.path} holds the tensor {shown(name)}, which is no low-rank update of a linear layer.",
                    "Merge the adapter into the model with PEFT (merge_and_unload), and load the result.",
                )
            if entry.dtype not in DENSE:
                raise UnsupportedModelError(
                    f"{self._file.path}: tensor {shown(name)} is stored as {entry.dtype}, which Halfbyte cannot read.",
                    "Save the adapter in bf16, f16 or f32.",
                )
            found.setdefault(match["module"], {})[match["part"]] = name
        if not found:
            damaged(self._file.path, "it holds no tensors")
        ranks, alphas = _Patterns(self._config, "rank_pattern"), _Patterns(self._config, "alpha_pattern")
        return {module: self._read_module(module, tensors, ranks, alphas) for module, tensors in found.items()}

    def _read_module(self, module: str, tensors: Mapping[str, str], ranks: _Patterns, alphas: _Patterns) -> _Module:
        wanted = {"A", "B", "magnitude_vector"} if self.dora else {"A", "B"}
        if tensors.keys() != wanted:
            lacking, extra = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
            what = f"lacks lora_{lacking[0]}" if lacking else f"has lora_{extra[0]}, and use_dora is not set"
            damaged(self._file.path, f"{shown(module)} {what}")
        rank = int(ranks.of(module, self._config.integer("r", most=1 << 16)))
        alpha = float(alphas.of(module, self._config.number("lora_alpha", 8.0, least=0.0)))
        shape = self._file.entries[tensors["A"]].shape
        if len(shape) != 2 or shape[0] != rank:
            damaged(
                self._file.path,
                f"the tensor {shown(tensors['A'])} has the shape {list(shape)}; {ADAPTER_CONFIG_NAME} gives it rank "
                f"{rank}",
            )
        return _Module(tensors, rank, alpha / (math.sqrt(rank) if self._config.flag("use_rslora", False) else rank))

    def _check_shapes(self, module: _Module, weight: str, shape: tuple[int, ...]) -> None:
        rows, columns = shape
        wanted = {"A": (module.rank, columns), "B": (rows, module.rank)}
        for part, expected in wanted.items():
            have = self._file.entries[module.tensors[part]].shape
            if have != expected:
                needed = f"has the shape {list(have)}; {weight} of {list(shape)} needs {list(expected)}"
                self._refuse(module, needed, part)
        if self.dora:
            have = self._file.entries[module.tensors["magnitude_vector"]].shape
            if math.prod(have) != rows:
                self._refuse(module, f"has the shape {list(have)}; {weight} has {rows} rows", "magnitude_vector")

    def _refuse(self, module: _Module, why: str, part: str = "A") -> None:
        trained = f" It says that it was trained on {shown(self.base)}." if self.base else ""
        raise InvalidModelError(
            f"{self.path} does not fit the model: the tensor {shown(module.tensors[part])}"
            f"{f', but {why}' if why.startswith('the model') else f' {why}'}.{trained}",
            _OTHER,
        )


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a model.

    Attributes:
        folder: Where it lies.
        matrices: For each tensor of the model that it changes, by name, the module's name in the adapter.
        notes: What a user should know.
    """

    folder: AdapterFolder
    matrices: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def rank(self) -> int:
        """The largest rank of its updates."""
        return self.folder.rank

    def update(self, name: str) -> Update | None:
        """What it does to a tensor of the model; None if nothing. Raises as `AdapterFolder.update`."""
        module = self.matrices.get(name)
        return None if module is None else self.folder.update(module)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (path / ADAPTER_CONFIG_NAME).is_file() and not (path / "config.json").is_file()


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "is a file, not the folder of an adapter" if path.exists() else "does not exist"
        raise ModelNotFoundError(f"{path} {what}.", f"Name a folder with {ADAPTER_CONFIG_NAME}.")
    if not (path / ADAPTER_CONFIG_NAME).is_file():
        hint = "It holds a model, not an adapter." if (path / "config.json").is_file() else "Name an adapter's folder."
        raise ModelNotFoundError(f"{path} has no {ADAPTER_CONFIG_NAME}.", hint)
    return read_json(path / ADAPTER_CONFIG_NAME)


def _check(config: Config) -> None:
    """Refuse what changes the arithmetic and is not supported.

    Raises:
        UnsupportedModelError: The first such key, by name and value.
    """
    kind = config.text("peft_type")
    if kind != "LORA":
        said = f"peft_type is {shown(kind)}" if kind else "it has no peft_type"
        raise UnsupportedModelError(
            f"{config.where}: {said}; Halfbyte reads LoRA adapters of PEFT (peft_type LORA).",
            "Merge the adapter into its model with the program that made it, and load the result.",
        )
    config.expect("bias", "none", "and Halfbyte does not change biases")
    if (begun := config.raw("init_lora_weights")) and begun not in _FRESH:
        raise UnsupportedModelError(
            f"{config.where}: init_lora_weights is {shown(begun)}, which changes the base model as well.",
            "Save the adapter as a difference from the original model: save_pretrained(…, "
            "path_initial_model_for_weight_conversion=…).",
        )
    if saved := config.raw("modules_to_save"):
        raise UnsupportedModelError(
            f"{config.where}: modules_to_save is {shown(saved)}: whole modules, which Halfbyte does not replace.",
            "Merge the adapter into the model with PEFT (merge_and_unload), and load the result.",
        )
    config.known("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    config.refuse_unknown(_HARMLESS)


class _Patterns:
    """Values for modules whose names match regular expressions, as PEFT's `get_pattern_key` finds them.

    Expressions come from a file. Those that could take long to match are refused.
    """

    def __init__(self, config: Config, key: str) -> None:
        values = config.raw(key) or {}
        if not isinstance(values, dict):
            raise config.error(key, "an object")
        self._found = [(_pattern(config, key, pattern), number) for pattern, number in values.items()]
        for _, number in self._found:
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < 1 << 16:
                raise config.error(key, "positive numbers")

    def of(self, module: str, default: float) -> float:
        """The value for a module: that of the first expression that matches the end of its name."""
        return next((number for pattern, number in self._found if pattern.match(module)), default)


def _pattern(config: Config, key: str, text: str) -> re.Pattern[str]:
    repeats = len(re.findall(r"[*+?{]", text))
    if len(text) <= _LONGEST_PATTERN and repeats <= _MOST_REPEATS and not re.search(r"\)[*+?{]", text):
        try:
            return re.compile(rf"(.*\.)?({text})$")
        except re.error:
            pass
    raise UnsupportedModelError(
        f"{config.where}: {key} has {shown(text)}, an expression that Halfbyte does not match.",
        "Write the names of modules there, such as q_proj.",
    )


def _open_weights(path: Path) -> SafetensorsFile:
    if (path / ADAPTER_WEIGHTS_NAME).is_file():
        return SafetensorsFile(path / ADAPTER_WEIGHTS_NAME)
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles:
        raise UnsupportedModelError(
            f"{path} has its weights only as a pickle ({pickles[0]}).",
            "Pickles can run code and are never read; save the adapter with PEFT 0.5 or later, as safetensors.",
        )
    raise ModelNotFoundError(f"{path} has no {ADAPTER_WEIGHTS_NAME}.", "Download or save the adapter again.")


def _candidates(module: str, spec: ModelSpec) -> list[str]:
    """What the weight of a module may be called in the model: itself, or with another beginning."""
    here = spec.final_norm.removesuffix("norm.weight")
    rests = [module.removeprefix(theirs) for theirs in _PREFIXES if module.startswith(theirs)]
    return [f"{module}.weight", *(f"{here}{rest}.weight" for rest in rests), *(f"{rest}.weight" for rest in rests)]


def _weight_of(module: str, spec: ModelSpec) -> str | None:
    found = (name for name in _candidates(module, spec) if len(spec.shapes.get(name, ())) == 2)
    return next(found, None)


def _is_ignored(module: str, spec: ModelSpec) -> bool:
    """Whether a module belongs to what text generation does not need, such as a part that sees images."""
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in spec.ignored) or r"(?!)")
    return any(ignored.fullmatch(name) for name in _candidates(module, spec))

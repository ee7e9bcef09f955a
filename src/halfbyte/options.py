"""How a model is run: one set of options for `load`, the commands, measurements and other processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from operator import index
from pathlib import Path
from typing import Any, TypedDict

from halfbyte import display
from halfbyte.errors import UsageError

AUTO = "auto"
KV_DTYPES = ("f16", "f32", "q8", "q4")
ACTIVATIONS = ("int8", "f32")

_MANY = 2**31 - 1
_OTHER_NAMES = {
    "n_ctx": "context", "ctx_size": "context", "num_ctx": "context", "max_model_len": "context",
    "n_threads": "threads", "num_threads": "threads", "kv_cache": "kv_dtype", "cache_type": "kv_dtype",
    "cache_type_k": "kv_dtype", "cache_type_v": "kv_dtype", "kv_cache_dtype": "kv_dtype",
    "quantization": "weights", "dtype": "weights", "parallel": "sequences", "max_num_seqs": "sequences",
    "lora": "merge", "lora_path": "merge", "adapter": "adapters", "lora_modules": "adapters",
    "n_batch": "batch_tokens", "batch_size": "batch_tokens", "max_total_tokens": "cache_tokens",
}  # fmt: skip
"""What other programs call the same thing."""


class LoadOptions(TypedDict, total=False):
    """The fields of `RunOptions` as keyword arguments."""

    device: str
    gpu: int | None
    threads: int | None
    weights: str | None
    kv_dtype: str
    activations: str | None
    kernels: str | None
    context: int | None
    sequences: int
    batch_tokens: int | None
    prefill_chunk: int
    cache_tokens: int | None
    logit_rows: int
    merge: str | Path | None
    adapters: Mapping[str, str | Path]


def _whole(default: int | None, least: int, most: int, only: str | None = None) -> Any:
    return field(default=default, metadata={"least": least, "most": most, "only": only})


def _one_of(default: str | None, values: tuple[str, ...]) -> Any:
    return field(default=default, metadata={"values": values})


@dataclass(frozen=True)
class RunOptions:
    """How a model is run. Frozen, comparable and picklable, so that another process can run it in the same way.

    Attributes:
        device: `cpu`, `gpu` (through WebGPU), `reference` (NumPy: slow, for checking), or `auto`: the GPU if there is
            a real one that passes its self-test and has room for the model, else the CPU.
        gpu: Which GPU, as `halfbyte doctor` numbers them; the first real one if None.
        threads: CPU threads; one per physical core that this process may use if None.
        weights: Store matrices in this format while loading, such as `q4g32`; as they are if None.
        kv_dtype: Number format of the KV cache: `f16`, `f32`, `q8` or `q4`. The last two keep values in 8 or 4 bits,
            with one scale for each 32 of them, and take 53% and 28% of the memory of `f16`.
        activations: Precision of what packed weights are multiplied with: `int8` (rounded in blocks of 32, the default
            on CPU and GPU) or `f32`, slower and exact.
        kernels: On the CPU an instruction set, on a GPU `no NAME`: all kernel variants except that one. The best if
            None.
        context: Most tokens of a conversation; if None the model's own limit, or less if the KV cache of one would take
            more than half of the free memory.
        sequences: Most conversations that are computed at once; others wait. They share the KV cache.
        batch_tokens: Most prompt tokens that are computed together; the device's default if None.
        prefill_chunk: Most tokens of prompts that are computed in one step while answers go on: less lets them flow
            more evenly, more reads prompts sooner.
        cache_tokens: Tokens that the KV cache holds for all conversations together; if None as many as half of the free
            memory holds, at least one `context` and at most `sequences` of them. Conversations wait for each other
            when it is full, and it keeps what finished ones computed while it has room.
        logit_rows: Most tokens of a batch whose logits can be had; more than `sequences` is for evaluation only.
        merge: A LoRA adapter (a folder as PEFT saves it, or a hub id) to be merged into the weights while loading,
            before `weights` packs them.
        adapters: LoRA adapters by name, any of which a request can choose. They stay beside the weights, which may be
            packed.

    Raises:
        UsageError: A value is of the wrong type or out of range, or two options contradict each other.
    """

    device: str = AUTO
    gpu: int | None = _whole(None, 0, 1023, only="gpu")
    threads: int | None = _whole(None, 1, 1024, only="cpu")
    weights: str | None = None
    kv_dtype: str = _one_of("f16", KV_DTYPES)
    activations: str | None = _one_of(None, ACTIVATIONS)
    kernels: str | None = None
    context: int | None = _whole(None, 1, _MANY)
    sequences: int = _whole(1, 1, 1024)
    batch_tokens: int | None = _whole(None, 1, 65536)
    prefill_chunk: int = _whole(256, 1, 65536)
    cache_tokens: int | None = _whole(None, 1, _MANY)
    logit_rows: int = _whole(8, 1, 65536)
    merge: str | Path | None = None
    adapters: Mapping[str, str | Path] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._check_device()
        self._check_adapters()
        for option in fields(self):
            if option.name == "adapters":
                continue
            if "least" in option.metadata:
                self._check_whole(option.name, option.default, **option.metadata)
            else:
                self._check_text(option.name, option.default, option.metadata.get("values"))
        deciding = self.deciding
        if len(deciding) > 1:
            raise UsageError(f"{' and '.join(deciding)} cannot be combined.", "Give one of the two.")
        if self.context is not None and self.cache_tokens is not None and self.cache_tokens < self.context:
            raise UsageError(
                f"cache_tokens ({self.cache_tokens}) must not be less than context ({self.context}).",
                "A conversation that fills its context must fit the cache: raise one, or lower the other.",
            )

    def __repr__(self) -> str:
        return display.given(self)

    @classmethod
    def of(cls, options: RunOptions | str | None = None, **changes: Any) -> RunOptions:
        """Options from others (a text is a device's name), with some changed.

        Raises:
            UsageError: Also for a name that is no option.
        """
        check_names("option", changes, (option.name for option in fields(cls)), _OTHER_NAMES)
        if isinstance(options, RunOptions):
            return cls(**{**vars(options), **changes})
        if options is not None:
            if "device" in changes:
                raise UsageError("the device is given twice.", "Give it once.")
            changes["device"] = options
        return cls(**changes)

    @property
    def deciding(self) -> tuple[str, ...]:
        """The options given that only one device has, and that so decide what `auto` means."""
        return tuple(o.name for o in fields(self) if o.metadata.get("only") and getattr(self, o.name) is not None)

    def device_of(self, name: str) -> str:
        """The only device that has the option `name`."""
        only: str = next(option.metadata["only"] for option in fields(self) if option.name == name)
        return only

    @property
    def rows(self) -> int:
        """Most rows of logits of one batch."""
        return max(self.logit_rows, self.sequences)

    def _check_device(self) -> None:
        known = (AUTO, *devices())
        if not isinstance(self.device, str) or self.device not in known:
            raise UsageError(f"device {self.device!r} is unknown.", f"It must be one of {', '.join(known)}.")

    def _check_adapters(self) -> None:
        if isinstance(self.merge, Path):
            object.__setattr__(self, "merge", str(self.merge))
        if not isinstance(self.adapters, Mapping):
            raise UsageError(f"adapters must be paths by name (got {self.adapters!r}).", 'Try {"name": "path"}.')
        for name, path in self.adapters.items():
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,100}", name):
                raise UsageError(
                    f"an adapter cannot be called {name!r}.", "Use letters, digits, '.', '_' and '-', such as sql-2."
                )
            if not isinstance(path, str | Path) or not str(path):
                raise UsageError(f"the path of the adapter {name} is {path!r}.", "Name its folder, or a hub id.")
        object.__setattr__(self, "adapters", {name: str(path) for name, path in self.adapters.items()})

    def _check_text(self, name: str, default: object, values: tuple[str, ...] | None) -> None:
        value = getattr(self, name)
        if value is None and default is None:
            return
        if not isinstance(value, str):
            raise UsageError(f"{name} must be a text (got {value!r}).", f"Leave {name} out for the default.")
        if values and value not in values:
            raise UsageError(f"{name} {value!r} is unknown.", f"It must be one of {', '.join(values)}.")

    def _check_whole(self, name: str, default: object, least: int, most: int, only: str | None) -> None:
        value = getattr(self, name)
        if value is None and default is None:
            return
        number = whole(value)
        if number is None or not least <= number <= most:
            kind = "a whole number " if number is None else ""
            raise UsageError(
                f"{name} must be {kind}between {least} and {most} (got {value!r}).",
                f"Leave {name} out for the default.",
            )
        object.__setattr__(self, name, number)
        if only and self.device not in (AUTO, only):
            raise UsageError(
                f"{name}={value} cannot be combined with device={self.device!r}.",
                f"Leave out one of the two, or use device={only!r}.",
            )


@cache
def devices() -> tuple[str, ...]:
    """Every device there is code for: packages with a module `factory`."""
    return tuple(sorted(file.parent.name for file in Path(__file__).parent.glob("*/factory.py")))


def whole(value: object) -> int | None:
    """A whole number of any integer type, NumPy's too, as an int; None if it is something else (True is no number)."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_names(what: str, given: Iterable[str], known: Iterable[str], others: Mapping[str, str] | None = None) -> None:
    """Refuse a name that is not known, with the one that was meant.

    Args:
        what: What the names are of, in one word.
        others: Names that other programs use, and ours for the same.

    Raises:
        UsageError: One of `given` is not known.
    """
    known = tuple(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            meant = (others or {}).get(name) or (near[0] if near else None)
            hint = f"Did you mean {meant}?" if meant in known else f"Known are {', '.join(known)}."
            raise UsageError(f"there is no {what} {name!r}.", hint)

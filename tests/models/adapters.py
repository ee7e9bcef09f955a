"""LoRA adapters for tiny models, made, saved and computed by PEFT; their numbers are such as f16 holds."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from halfbyte.checkpoint.adapter import AdapterFolder
from halfbyte.checkpoint.lora import AdaptedWeights
from halfbyte.plan import Plan, make_plan
from tests.models.tiny import FAMILIES, Tiny, tiny

SEEING = {"gemma-3-4b": "language_model", "mistral-3": "language_model", "qwen-3.5": "language_model"}
"""Families whose models see images, and what stands in the names of modules that read text."""


def targets(family: str) -> list[str]:
    """Every linear module of a family's layers that read text, by its last name."""
    inside = SEEING.get(family, "layers.")
    names = [name for name, module in tiny(family).model.named_modules() if isinstance(module, torch.nn.Linear)]
    return sorted({name.rpartition(".")[2] for name in names if "layers." in name and inside in name})


@dataclass(frozen=True)
class Source(Tiny):
    """A tiny model that can tell its shapes, as a checkpoint does."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        return {name: values.shape for name, values in self.tensors.items()}


def source(family: str, weight_format: str = "f32") -> Source:
    """The tiny model of a family."""
    model = tiny(family)
    return Source(model.model, model.config, model.tensors, weight_format)


def beside(
    family: str, folders: dict[str, Path], *, weight_format: str = "f32", **capacities: Any
) -> tuple[Plan, AdaptedWeights]:
    """A plan of the tiny model with adapters, and its weights."""
    base = source(family, weight_format)
    fitted = {name: AdapterFolder(folder).fitted(base.spec) for name, folder in folders.items()}
    weights = AdaptedWeights(base, fitted)
    spec = replace(base.spec, adapters=weights.adapters)
    return make_plan(spec, weights.format, **{"kv_dtype": "f32", "rows": 64, "tokens": 64, **capacities}), weights


ADAPTABLE = sorted(set(FAMILIES) - {"gemma-4"})
"""Families that PEFT can adapt: it does not know the layers of Gemma 4's towers."""


class Adapted:
    """A tiny model with one or more adapters, as PEFT computes it.

    Args:
        family: Its name in `tests.models.tiny`.
    """

    def __init__(self, family: str) -> None:
        self._base = copy.deepcopy(tiny(family).model)
        self._model: Any = None
        self.family = family

    def add(self, name: str, folder: Path, *, seed: int = 3, strength: float = 0.3, **config: Any) -> Path:
        """Give it an adapter with random numbers, saved below `folder`; returns where."""
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        defaults = {"r": 4, "lora_alpha": 8, "target_modules": self.linear_modules()}
        made = peft.LoraConfig(**{**defaults, **config})
        if self._model is None:
            self._model = peft.get_peft_model(self._base, made, adapter_name=name).eval()
        else:
            self._model.add_adapter(name, made)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter, values in self._model.named_parameters():
                if f".{name}" not in parameter or "lora_" not in parameter:
                    continue
                if "magnitude" in parameter:
                    values.mul_(1 + 0.2 * torch.randn_like(values))
                else:
                    values.copy_((torch.randn_like(values) * strength * values.shape[-1] ** -0.5).half().float())
        self._model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        return folder if name == "default" else folder / name

    def linear_modules(self) -> list[str] | str:
        """What PEFT is told to change: of a model that sees images, only what reads text."""
        names = targets(self.family)
        return rf".*{SEEING[self.family]}.*\.({'|'.join(names)})" if self.family in SEEING else names

    def logits(self, ids: list[int], name: str | None = None) -> np.ndarray:
        """For every position of a full pass, with the adapter `name` or without any."""
        with torch.no_grad():
            if name is None:
                with self._model.disable_adapter():
                    return np.asarray(self._model(torch.tensor([ids])).logits[0])
            self._model.set_adapter(name)
            return np.asarray(self._model(torch.tensor([ids])).logits[0])

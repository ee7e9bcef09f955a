"""Adapters of the pocket model with random numbers, as PEFT would save them, strong enough to change what is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.model import POCKET
from halfbyte.models import build_spec

RANK = 4


def make(
    folder: Path, *, seed: int, strength: float = 0.5, modules: tuple[str, ...] = ("qkv_proj", "down_proj")
) -> Path:
    """Write an adapter; returns its folder."""
    checkpoint, random = open_checkpoint(POCKET), np.random.default_rng(seed)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    tensors = {}
    for name, shape in spec.shapes.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in modules:
            base = f"base_model.model.{module}"
            a = random.standard_normal((RANK, shape[1])) * strength * shape[1] ** -0.5
            b = random.standard_normal((shape[0], RANK)) * strength
            tensors |= {f"{base}.lora_A.weight": a.astype(np.float16), f"{base}.lora_B.weight": b.astype(np.float16)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": list(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "shell-29m"}))
    return folder

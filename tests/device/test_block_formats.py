"""Whole models in each of ggml's formats that run as they are stored: a GGUF file's logits on every device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import halfbyte
from halfbyte.checkpoint import open_checkpoint
from halfbyte.checkpoint.gguf.writer import KINDS, Kind, write_gguf
from halfbyte.text.files import read_tokenizer_files
from tests.blocks import RUN_AS_THEY_ARE
from tests.device.gpu import software_index
from tests.models.test_interchange import spec_of

IDS = [5, 80, 33, 7, 7, 60, 12, 90, 41, 3, 28, 77]
DEVICES = {"reference": None, "cpu": None, "gpu": software_index}


@pytest.mark.parametrize("name", RUN_AS_THEY_ARE)
def test_a_file_gives_the_logits_of_the_reference(
    shell_29m: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Two layers of a trained model, all of whose matrices are in one format."""
    monkeypatch.setitem(KINDS, name, Kind(name, name, name, 0))
    source = open_checkpoint(shell_29m)
    spec = spec_of(source)
    left_out = tuple(f"model.layers.{index}." for index in range(2, len(spec.layers)))
    shapes = {tensor: shape for tensor, shape in spec.shapes.items() if not tensor.startswith(left_out)}
    short = replace(spec, layers=spec.layers[:2], shapes=shapes)
    write_gguf(path := tmp_path / "short.gguf", source, short, read_tokenizer_files(shell_29m), kind=name)
    found = {}
    for device, index in DEVICES.items():
        number = index() if index else None
        options = {"kv_dtype": "f32", "context": 64} | ({"activations": "f32"} if device != "reference" else {})
        with halfbyte.load(path, device, gpu=number, **options) as model:
            assert not model.notes
            found[device] = np.concatenate([rows.copy() for rows in model.engine.score(IDS)])
    for device in ("cpu", "gpu"):
        assert np.abs(found[device] - found["reference"]).max() < 1e-5 * np.abs(found["reference"]).max(), device

"""Matrices that compressed-tensors itself packed, against what it unpacks them to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

from tests.unit.test_foreign import COLUMNS, NAME, ROWS, opened


@pytest.mark.parametrize(
    ("bits", "group", "symmetric", "form"),
    [
        (4, 32, True, "q4g32"),
        (4, 64, False, "q4g64z"),
        (4, 128, False, "q4g128z"),
        (4, None, True, "q4g128"),
        (8, 64, True, "q8g64"),
        (8, 64, False, "f16"),
    ],
)
def test_its_own_files_are_read_as_it_reads_them(
    tmp_path: Path, bits: int, group: int | None, symmetric: bool, form: str
) -> None:
    """Scales are float16 numbers stored in float32, so that its products are exact."""
    generator = torch.Generator().manual_seed(bits)
    shape = ROWS, COLUMNS // group if group else 1
    scale = torch.rand(shape, generator=generator).mul(0.1).add(0.01).half().float()
    zero = torch.randint(-(1 << bits - 1), 1 << bits - 1, shape, generator=generator, dtype=torch.int8)
    stored = {"weight": torch.randn(ROWS, COLUMNS, generator=generator), "weight_scale": scale}
    stored["weight_zero_point"] = torch.zeros_like(zero) if symmetric else zero
    weights = QuantizationArgs(
        num_bits=bits, symmetric=symmetric, group_size=group, strategy="group" if group else "channel"
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    settings = QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized").model_dump(mode="json")
    packed = PackedQuantizationCompressor.compress(stored, scheme)
    theirs = PackedQuantizationCompressor.decompress(packed, scheme)["weight"].numpy()
    checkpoint = opened(tmp_path, settings, {name: tensor.numpy() for name, tensor in packed.items()})
    ours = checkpoint.weight(f"{NAME}.weight")
    assert ours.format.name == form
    assert np.unique(theirs).size > 100
    np.testing.assert_array_equal(ours.decode(), theirs.astype(np.float16) if form == "f16" else theirs)

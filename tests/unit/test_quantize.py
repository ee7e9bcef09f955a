"""Round-to-nearest packing of whole models."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from halfbyte.checkpoint import Checkpoint, open_checkpoint
from halfbyte.errors import UnsupportedModelError, UsageError
from halfbyte.quantization import quantize


def relative_error(original: Checkpoint, packed: Checkpoint) -> float:
    """Root of summed squared errors over summed squares, of all matrices."""
    error = power = 0.0
    for name in (name for name, shape in original.shapes.items() if len(shape) == 2):
        values = original.weight(name).decode().astype(np.float64)
        error += ((packed.weight(name).decode() - values) ** 2).sum()
        power += (values**2).sum()
    return float(np.sqrt(error / power))


@pytest.mark.parametrize(("zero_points", "bits", "most_error"), [(False, 4.5034, 0.0863), (True, 4.6284, 0.0810)])
def test_the_trained_checkpoint(
    shell_29m: Path, tmp_path: Path, zero_points: bool, bits: float, most_error: float
) -> None:
    seen: list[tuple[str, int, int]] = []
    manifest = quantize(
        shell_29m, tmp_path / "q", zero_points=zero_points, progress=lambda *report: seen.append(report)
    )
    original, packed = open_checkpoint(shell_29m), open_checkpoint(tmp_path / "q")
    packed.verify()
    assert manifest == packed.manifest
    assert manifest.bits_per_weight == pytest.approx(bits, abs=1e-4)
    assert manifest.source == "shell-29m"
    assert relative_error(original, packed) < most_error
    assert seen[-1][1] == seen[-1][2] == packed.nbytes
    assert {record.method for record in manifest.tensors.values()} == {"rtn", "copy"}
    name = "model.layers.0.input_layernorm.weight"
    np.testing.assert_array_equal(packed.weight(name).decode(), original.weight(name).decode())
    assert sum(file.stat().st_size for file in (tmp_path / "q").iterdir()) <= 18_000_000


def test_larger_groups_and_other_formats_for_the_embedding(shell_29m: Path, tmp_path: Path) -> None:
    manifest = quantize(shell_29m, tmp_path / "q", group_size=128, embed_format="bf16", name="a name")
    formats = {name: record.format for name, record in manifest.tensors.items()}
    assert formats.pop("model.embed_tokens.weight") == "bf16"
    assert formats.pop("model.layers.0.mlp.down_proj.weight") == "q4g128"
    assert manifest.tensors["model.embed_tokens.weight"].method == "copy"
    assert manifest.source == "a name"


def test_tokens_and_templates_in_files_of_their_own_go_along(shell_29m: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(shell_29m, source)
    source.chmod(0o755)
    (source / "added_tokens.json").write_text('{"<new>": 8192}')
    templates = source / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ tools }}")
    quantize(source, tmp_path / "q")
    found = open_checkpoint(tmp_path / "q").tokenizer_files()
    assert found.templates == {"tool_use": "{{ tools }}"}
    assert [token.content for token in found.added_tokens] == ["<new>"]


def test_what_is_packed_is_not_packed_again(shell_29m: Path, tmp_path: Path) -> None:
    quantize(shell_29m, tmp_path / "q")
    with pytest.raises(UsageError, match="quantized already"):
        quantize(tmp_path / "q", tmp_path / "q2")
    assert not (tmp_path / "q2").exists()


def test_options_out_of_range(shell_29m: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Groups of 48"):
        quantize(shell_29m, tmp_path / "q", group_size=48)
    with pytest.raises(UnsupportedModelError, match="'q3'"):
        quantize(shell_29m, tmp_path / "q", head_format="q3")
    assert not (tmp_path / "q").exists()


def test_memory_holds_one_tensor(shell_29m: Path, tmp_path: Path) -> None:
    """Packing raises a process's peak memory by less than the 59 MB of the model."""
    code = (
        "import resource, sys; from pathlib import Path; from halfbyte.quantization import quantize\n"
        "import halfbyte.models.phi3\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "quantize(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(shell_29m), str(tmp_path / "q")]
    growth_kib = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert growth_kib < 40 * 1024

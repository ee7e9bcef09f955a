"""Evaluation on the trained checkpoint, against figures that others measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.checkpoint import open_checkpoint
from halfbyte.cli import main
from halfbyte.evaluate.divergence import divergence
from halfbyte.evaluate.perplexity import perplexity
from halfbyte.evaluate.scorer import Scorer
from halfbyte.evaluate.texts import read_text, tokens_of
from halfbyte.evaluate.windows import Ids, Protocol
from halfbyte.quantize import quantize


@pytest.fixture(scope="module")
def ids(shared: Path, shell_29m: Path) -> Ids:
    """The first 8 windows of 2048 tokens."""
    scorer = Scorer(shell_29m, 16)
    return tokens_of(scorer.model.tokenizer, read_text(str(shared / "data" / "books-dev.txt")), 8 * 2048)


def test_perplexity_is_what_llama_cpp_measures(shell_29m: Path, ids: Ids) -> None:
    """llama.cpp's f16 of this checkpoint on these windows, no BOS: 32.343."""
    found = perplexity(Scorer(shell_29m, 2048), ids, Protocol())
    assert found.ppl == pytest.approx(32.343, rel=2e-4)
    assert found.tokens == 8 * 2047
    assert 0.2 < found.stderr < 2


def test_short_windows_run_together_and_agree_with_single_ones(shell_29m: Path, ids: Ids) -> None:
    scorer = Scorer(shell_29m, 16)
    together = perplexity(scorer, ids[:320], Protocol(window=16))
    alone = [perplexity(scorer, ids[i : i + 16], Protocol(window=16)) for i in range(0, 320, 16)]
    product = 1.0
    for found in alone:
        product *= found.ppl ** (1 / len(alone))
    assert together.ppl == pytest.approx(product, rel=1e-4)


def test_divergence_of_rounding_to_nearest(shell_29m: Path, ids: Ids) -> None:
    base = Scorer(shell_29m, 512)
    same = divergence(base, Scorer(shell_29m, 512), ids[:1024], Protocol(window=512))
    assert (same.kl_max, same.top1, same.ppl_ratio) == (0.0, 1.0, 1.0)
    rounded = divergence(Scorer(shell_29m, 512, weights="q4g32"), base, ids[:2048], Protocol(window=512))
    assert 0.035 < rounded.kl_mean < 0.065
    assert 0.80 < rounded.top1 < 0.90
    assert rounded.kl_mean < rounded.kl_p99 < rounded.kl_max


def test_figures_are_kept_beside_the_weights(
    shell_29m: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(shell_29m, tmp_path / "q", method="rtn", clip=True, group_size=64, zero_points=True)
    text = str(shared / "data" / "books-dev.txt")
    arguments = ["eval", "divergence", "-m", str(tmp_path / "q"), "--base", str(shell_29m), "--text", text]
    monkeypatch.setattr("sys.argv", ["halfbyte", *arguments, "--max-tokens", "600", "--window", "300", "--json"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"kl_mean", "kl_p99", "kl_max", "top1", "ppl", "ppl_base", "ppl_ratio", "tokens"} <= printed.keys()
    manifest = open_checkpoint(tmp_path / "q").manifest
    assert manifest is not None
    assert manifest.quality["divergence"] == printed
    open_checkpoint(tmp_path / "q").verify()

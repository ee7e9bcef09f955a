"""Protocols, figures and tables of evaluation, without a trained model."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from halfbyte.errors import UsageError
from halfbyte.evaluation.answers import Answers, compare, read_questions
from halfbyte.evaluation.divergence import Divergence, _compare, _summary
from halfbyte.evaluation.perplexity import mean_perplexity
from halfbyte.evaluation.plot import plot
from halfbyte.evaluation.scorer import log_probabilities
from halfbyte.evaluation.table import Row, Table
from halfbyte.evaluation.windows import Protocol, protocol

IDS = np.arange(100, 1100, dtype=np.int32)


def scored(cut: Protocol) -> list[list[int]]:
    return [window.ids[window.first_scored :].tolist() for window in cut.cut(IDS)]


def test_windows_score_all_but_each_first_token() -> None:
    found = scored(Protocol("windows", 300))
    assert [len(part) for part in found] == [299, 299, 299, 99]
    assert found[1][0] == 401
    assert [len(part) for part in scored(Protocol("gptq", 300))] == [299, 299, 299]


def test_llama_cpp_scores_the_second_half_after_bos() -> None:
    windows = Protocol("llama.cpp", 512, bos=1).cut(IDS)
    assert len(windows) == 1
    assert windows[0].ids[0] == 1
    assert windows[0].ids[1] == 101
    assert len(windows[0].ids) - windows[0].first_scored == 255
    assert IDS[0] == 100


def test_sliding_scores_each_token_once() -> None:
    found = scored(Protocol("sliding", 256, 64))
    assert [token for part in found for token in part] == list(range(101, 1100))
    assert [len(part) for part in found[:3]] == [255, 64, 64]


def test_protocols_bring_their_lengths() -> None:
    assert protocol("llama.cpp").window == 512
    assert (protocol("sliding").window, protocol("sliding").stride) == (2048, 512)
    with pytest.raises(UsageError, match="too few"):
        protocol("gptq").cut(IDS)
    with pytest.raises(UsageError, match="Windows of 1"):
        Protocol("windows", 1).cut(IDS)


def test_perplexity_of_known_losses() -> None:
    ppl, stderr = mean_perplexity(np.log(np.array([2.0, 8.0, 2.0, 8.0])))
    assert ppl == pytest.approx(4.0)
    assert stderr == pytest.approx(4.0 * np.std(np.log([2, 8, 2, 8]), ddof=1) / 2)
    assert mean_perplexity(np.log(np.array([2.0]))) == (pytest.approx(2.0), None)


def test_divergence_of_known_distributions() -> None:
    p, q = np.array([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]]), np.array([[0.25, 0.5, 0.25], [0.2, 0.6, 0.2]])
    columns = _compare(np.log(q), np.log(p), np.array([0, 1]))
    found = _summary(columns)
    assert found.kl_max == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2), rel=1e-5)
    assert found.kl_mean == pytest.approx(found.kl_max / 2, rel=1e-5)
    assert found.top1 == 0.5
    assert found.ppl_ratio == pytest.approx(np.sqrt(2), rel=1e-5)
    assert found.tokens == 2


def test_huge_logits_do_not_overflow() -> None:
    rows = log_probabilities(np.array([[1e4, 0.0, -1e4]], np.float32))
    assert rows[0].tolist() == [0.0, -1e4, -2e4]
    with pytest.raises(UsageError, match="computes NaN"):
        log_probabilities(np.array([[np.nan, 0.0]], np.float32))


def test_questions_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "a?", "answer": "b"}\n\n{"question": "c?"}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_questions(file)
    file.write_text('{"question": "a?", "answer": "b"}\n')
    assert read_questions(file)[0].answer == "b"
    assert compare([True, True, False], [True, False, True]).kept == 1


def test_a_table_in_every_form() -> None:
    moved = Divergence(0.02, 0.001, 0.2, 1.5, 0.9, 33.0, 32.25, 1.02326, 98, 0.2, 0.2)
    first = Row("bf16", 16.0, (72.5, 32.25), (0.5, 0.2), None, Answers(9, 10))
    table = Table((16, 2048), (first, Row("a<b", 4.5, (74.0, 33.0), (0.5, 0.2), moved, Answers(8, 10, 7, 9))), "x", 99)
    assert "| a<b | 4.500 | 74.000 | 33.000 |" in table.markdown()
    assert "| a<b | 4.500 | 0.0200 | 0.200 | 90.0% | 1.0233 | 8 | 7 of 9 |" in table.markdown()
    assert "a<b,4.5,74.0,0.5,33.0,0.2,0.02,0.001,0.2,1.5,0.9,1.02326,8,10,7,9" in table.csv()
    assert json.loads(table.json())["rows"][0]["ppl"] == [72.5, 32.25]
    assert table.plot().count(b'id="line-') == 2
    assert (table.plot("png")[:4], table.plot("pdf", dark=True)[:4]) == (b"\x89PNG", b"%PDF")


@pytest.mark.parametrize("width", [48, 80, 240])
def test_a_table_fits_a_terminal_with_all_its_figures(width: int) -> None:
    moved = Divergence(0.02, 0.001, 0.2, 1.5, 0.9, 33.0, 32.25, 1.02326, 98, 0.2, 0.2)
    lengths = (16, 96, 192, 256, 512, 768, 1024, 1536, 2048)
    found = [tuple(base + 1.125 * i for i in range(len(lengths))) for base in (72.5, 84.0)]
    rows = (
        Row("bf16", 16.0, found[0], (0.5,) * len(lengths), None, Answers(9, 10)),
        Row("q4-awq", 4.5, found[1], (0.5,) * len(lengths), moved, Answers(8, 10, 7, 9)),
    )
    table = Table(lengths, rows, "x", 99)
    shown = table.terminal(width)
    assert all(len(line) <= width for line in shown.splitlines())
    cells = {cell.strip() for line in table.markdown().splitlines() for cell in line.strip("|").split(" | ")}
    assert {cell for cell in cells if not re.fullmatch(r"[\s|:-]*", cell) and cell not in shown} == set()


SVG = "{http://www.w3.org/2000/svg}"


def box(drawn: ElementTree.Element, name: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the first path of a part."""
    path = drawn.find(f".//*[@id='{name}']//{SVG}path")
    assert path is not None
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
    across, down = numbers[::2], numbers[1::2]
    return min(across), min(down), max(across), max(down)


def place(text: ElementTree.Element) -> tuple[float, float]:
    """Where a text stands."""
    found = re.search(r"translate\((-?[\d.]+) (-?[\d.]+)\)", text.attrib.get("transform", ""))
    return (float(found[1]), float(found[2])) if found else (float(text.attrib["x"]), float(text.attrib["y"]))


def test_a_plots_legend_lies_beside_its_curves_and_its_axes_are_named() -> None:
    windows = (16, 96, 256, 1024, 2048)
    names = ["bf16", "a model with quite a long name, 5.85 bits"]
    drawn = ElementTree.fromstring(plot(names, [[1.0] * 5, [1.061, 1.05, 1.04, 0.99, 0.986]], windows, "A & B"))
    texts = {text.text: place(text) for text in drawn.iter(f"{SVG}text")}
    assert {
        "window length (tokens)",
        "perplexity / original's perplexity",
        "A & B",
        "1.0: as the original",
    } <= texts.keys()
    left, top, right, bottom = box(drawn, "patch_2")
    curves = [box(drawn, "line-0"), box(drawn, "line-1")]
    assert all(left <= curve[0] < curve[2] <= right and top <= curve[1] <= curve[3] <= bottom for curve in curves)
    legend = [texts[name] for name in (*names, "1.0: as the original")]
    assert all(x > right for x, _ in legend)
    assert [b - a > 12 for (_, a), (_, b) in pairwise(legend)] == [True, True]
    assert float(drawn.attrib["viewBox"].split()[2]) > legend[1][0] + 5 * len(names[1])
    powers = [texts[f"{2**i:,}"][0] for i in range(4, 12)]
    steps = [after - before for before, after in pairwise(powers)]
    assert steps == pytest.approx([steps[0]] * 7, rel=0.05)
    assert "96" not in texts


def test_a_plot_is_light_or_dark_as_its_page() -> None:
    light, dark = (plot(["bf16"], [[1.0, 1.0]], (16, 32), "A", dark=dark).decode() for dark in (False, True))
    assert "prefers-color-scheme: dark" in light
    assert "fill: #0d1117" in dark
    assert "#ffffff" not in dark


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as raised:
        plot(["bf16"], [[1.0]], (16,), "A")
    assert raised.value.hint == "Install it: pip install 'halfbyte[plot]'"

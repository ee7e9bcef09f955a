"""Figures of quality in words, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LABELS = {
    "ppl": "perplexity",
    "stderr": "standard error of the perplexity",
    "ppl_stderr": "standard error of the perplexity",
    "ppl_base": "perplexity of the base",
    "ppl_base_stderr": "standard error of the base's perplexity",
    "ppl_ratio": "perplexity over the base's",
    "kl_mean": "mean KL divergence, in nats per token",
    "kl_stderr": "standard error of that mean",
    "kl_p99": "99th percentile of the KL divergence",
    "kl_max": "largest KL divergence",
    "top1": "share of tokens with the same first choice",
    "tokens": "tokens scored",
    "bos": "windows begin with the BOS token",
    "right": "right answers",
    "total": "questions asked",
    "base_right": "right answers of the base",
    "kept": "right answers of both",
    "halfbyte": "Halfbyte version",
}
"""Names of figures in words; the others explain themselves."""


def labelled(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values in words, hashes left out."""
    return [
        (_LABELS.get(name, name.replace("_", " ")), _shown(value))
        for name, value in figures.items()
        if not name.endswith("_sha256")
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)

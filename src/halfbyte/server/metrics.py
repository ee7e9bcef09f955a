"""Counts and times of requests, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from halfbyte._version import __version__
from halfbyte.server.exchange import Exchange
from halfbyte.server.limits import Gate
from halfbyte.server.registry import Registry

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """What has been counted since the server started.

    Args:
        models: What answers; None if replicas do, which count what they answer themselves.
    """

    def __init__(self, gate: Gate, models: Registry | None = None) -> None:
        self._gate, self._models = gate, models
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "halfbyte_requests", "Requests, by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "halfbyte_request_seconds", "From a request to the end of its answer.", ["route"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "halfbyte_time_to_first_token_seconds", "From a request to its first token.", ["model"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._queue = Histogram(
            "halfbyte_queue_seconds", "From a request to its turn.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._per_token = Histogram(
            "halfbyte_time_per_output_token_seconds", "Of the tokens of an answer after the first.", ["model"],
            buckets=_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self._prompt = Counter("halfbyte_prompt_tokens", "Tokens of prompts.", ["model"], registry=registry)
        self._cached = Counter(
            "halfbyte_cached_prompt_tokens", "Tokens of prompts that the KV cache held.", ["model"], registry=registry
        )
        self._generated = Counter("halfbyte_generated_tokens", "Tokens of answers.", ["model"], registry=registry)
        self._running = Gauge("halfbyte_requests_running", "Requests that are answered.", registry=registry)
        self._waiting = Gauge("halfbyte_requests_waiting", "Requests that wait for a place.", registry=registry)
        self._loaded = Gauge("halfbyte_model_loaded", "Whether a model is in memory.", ["model"], registry=registry)
        self._loads = Gauge("halfbyte_model_loads", "How often a model was loaded.", ["model"], registry=registry)
        about = Gauge("halfbyte_build_info", "The version that runs.", ["version"], registry=registry)
        about.labels(__version__).set(1)

    def count(self, exchange: Exchange) -> None:
        """Count a request that has ended."""
        route, model = exchange.route or "none", exchange.model
        self._requests.labels(route, str(exchange.status)).inc()
        self._seconds.labels(route).observe(exchange.age_s)
        if model and exchange.turn_s is not None:
            self._queue.labels(model).observe(exchange.turn_s)
        if model and exchange.first_s is not None:
            self._first.labels(model).observe(exchange.first_s)
        if model and (usage := exchange.usage) is not None:
            self._prompt.labels(model).inc(usage.prompt_tokens)
            self._cached.labels(model).inc(usage.cached_tokens)
            self._generated.labels(model).inc(usage.completion_tokens)
            later = usage.completion_tokens - 1
            if exchange.first_s is not None and later > 0:
                self._per_token.labels(model).observe((exchange.age_s - exchange.first_s) / later)

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        self._running.set(self._gate.running if self._models else 0)
        self._waiting.set(self._gate.waiting)
        for entry in self._models.entries if self._models else ():
            self._loaded.labels(entry.source.name).set(entry.loaded is not None)
            self._loads.labels(entry.source.name).set(entry.loads)
        return generate_latest(self._registry)


def joined(texts: Mapping[str, bytes]) -> bytes:
    """Metrics of several processes as one text, where each sample tells by the label `replica` whose it is."""
    found: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            whole = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [each._replace(labels={**each.labels, "replica": name}) for each in family.samples]
    registry = CollectorRegistry()
    registry.register(_Collected(list(found.values())))
    return generate_latest(registry)


class _Collected(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        """All of them."""
        return self._metrics

"""A Ray Serve application: replicas of a model on the machines of a cluster, behind one server.

    serve run halfbyte.cluster:app model=owner/name replicas=4 gpus=1 sequences=16

Ray's proxies pass requests to `Ingress`, the same front as that of `halfbyte serve --replicas`; it looks after keys,
limits and ids. `PrefixRouter` sends each request to the `Replica` whose KV cache holds its beginning. Each replica is a
whole server, so that all routes work.
"""

import os
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from halfbyte.cluster.replica import RayReplicas, Replica
from halfbyte.errors import UsageError
from halfbyte.options import AUTO, RunOptions, check_names
from halfbyte.server.forwarding import create_front
from halfbyte.server.settings import Settings

SEQUENCES = 8
LOGIT_ROWS = 64
CONCURRENT = 32
"""As `halfbyte serve` has them."""
ROUTER = "halfbyte.cluster.router.PrefixRouter"
_SPARE = 64
"""Requests that the ingress takes beside those that are answered or wait: what it refuses, it refuses itself."""


class Arguments(BaseModel):
    """What `serve run halfbyte.cluster:app` takes, as `NAME=VALUE`. All other names are fields of `RunOptions`.

    Attributes:
        model: A folder or file that every machine has, a hub id, or the pocket model.
        name: What requests call it; the hub id, or the last part of the path, if None.
        revision: Branch, tag or commit of a hub id.
        offline: Use only what was downloaded before.
        replicas: How many replicas there are.
        max_replicas: Most replicas; Ray adds them as requests come, and removes them down to `replicas`.
        target_ongoing_requests: Requests of a replica from which on one is added; as many as `sequences` if None.
        gpus: GPUs of each replica, 1 or 0; 1 if the device is `gpu`.
        cpus: CPUs of each replica, and its threads if it runs on the CPU.
        ingresses: Processes that look after keys and limits; each counts for itself.
        api_key: What requests must bring; that of `HALFBYTE_API_KEY` if None.
        insecure: Answer other machines without a key.
        max_concurrent: Requests that are answered at once; 32 for each replica if None.
        max_queue: Requests that wait for that.
        timeout_s: Seconds that a request may take.
        log_prompts: Whether the log holds what was asked.
    """

    model_config = ConfigDict(extra="allow")

    model: str = "pocket"
    name: str | None = None
    revision: str | None = None
    offline: bool = False
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = Field(None, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    gpus: int | None = Field(None, ge=0, le=1)
    cpus: float = Field(1.0, gt=0)
    ingresses: int = Field(1, ge=1)
    api_key: str | None = None
    insecure: bool = False
    max_concurrent: int | None = None
    max_queue: int = 128
    timeout_s: float = 600.0
    log_prompts: bool = False

    def run(self) -> RunOptions:
        """How each replica runs its model.

        Raises:
            UsageError: An option is unknown or out of range.
        """
        given = self.model_extra or {}
        options = RunOptions.__dataclass_fields__
        check_names("argument", given, [*options, *type(self).model_fields])
        run = TypeAdapter(RunOptions).validate_python({"sequences": SEQUENCES, **given})
        gpus = self.gpus if self.gpus is not None else int(run.device == "gpu")
        if gpus and run.device not in (AUTO, "gpu"):
            raise UsageError(f"gpus={gpus} cannot be combined with device={run.device!r}.", "Leave out one of the two.")
        if run.device == AUTO:
            run = replace(run, device="gpu" if gpus else "cpu")
        return replace(run, logit_rows=max(LOGIT_ROWS, run.sequences))

    @property
    def settings(self) -> Settings:
        """What the front is told. Without a key it answers to this machine's own names only."""
        most = self.max_concurrent or CONCURRENT * max(self.replicas, self.max_replicas or 0)
        return Settings(
            host="0.0.0.0" if self.insecure else "127.0.0.1", insecure=self.insecure, max_concurrent=most,
            api_key=self.api_key or os.environ.get("HALFBYTE_API_KEY"), max_queue=self.max_queue,
            timeout_s=self.timeout_s, log_prompts=self.log_prompts,
        )  # fmt: skip


def app(arguments: Arguments) -> serve.Application:
    """The application: what `serve run halfbyte.cluster:app NAME=VALUE …` builds, and what `ray.serve.run` takes.

    Raises:
        UsageError: An argument is unknown or out of range.
    """
    run, settings = arguments.run(), arguments.settings
    most = settings.max_concurrent
    scaling: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.max_replicas is not None:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=arguments.replicas, max_replicas=arguments.max_replicas,
                target_ongoing_requests=arguments.target_ongoing_requests or run.sequences,
            )
        }  # fmt: skip
    replicas = serve.deployment(
        name="Replica", max_ongoing_requests=most, graceful_shutdown_timeout_s=settings.grace_s,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": int(run.device == "gpu")},
        request_router_config={
            "request_router_class": ROUTER, "request_router_kwargs": {"sequences": run.sequences},
        }, **scaling,
    )(Replica)  # fmt: skip
    front = serve.deployment(
        name="Ingress", num_replicas=arguments.ingresses, max_ongoing_requests=most + settings.max_queue + _SPARE,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Ingress))  # fmt: skip
    inner = replace(settings, host="0.0.0.0", insecure=True, api_key=None, behind=True)
    model = (arguments.model, arguments.name, arguments.revision, arguments.offline)
    return front.bind(replicas.bind(*model, run, inner), arguments.replicas, settings)


class Ingress:
    """The deployment that Ray's proxies pass requests to."""

    def __init__(self, replicas: DeploymentHandle[Any], count: int, settings: Settings) -> None:
        self._replicas, self._settings = RayReplicas(replicas, count), settings

    def __serve_build_asgi_app__(self) -> Starlette:
        """The application of this process; Ray asks for it."""
        made = create_front(self._replicas, self._settings)
        made.add_middleware(_Unnamed)
        return made


class _Unnamed:
    """Leaves the id of a request out of its answer: Ray's proxy has given the request that id, and sends it itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""

        async def unnamed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await self._app(scope, receive, unnamed)

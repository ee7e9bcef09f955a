"""`halfbyte serve`: answer requests over HTTP, in OpenAI's protocols."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfbyte.cli import completion
from halfbyte.cli.exit_codes import EXIT_SIGNAL
from halfbyte.cli.loading import ADAPTERS, RUN, Chosen, late_bar, takes_model
from halfbyte.cli.output import note
from halfbyte.errors import UsageError
from halfbyte.options import RunOptions
from halfbyte.units import size

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from halfbyte.model import Model
    from halfbyte.server.registry import Source
    from halfbyte.server.settings import Settings

SEQUENCES = 8
CONCURRENT = 32
"""Requests that are answered at once by each process."""
LOGIT_ROWS = 64
"""Tokens of a prompt that are scored together."""

_SERVER = "Server"
_LIMITS = "Limits"

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        help="Folders, GGUF files, Hugging Face ids or short names, each as MODEL or NAME=MODEL.",
        show_default="the pocket model",
        autocompletion=completion.models,
    ),
]
Host = Annotated[str, typer.Option(metavar="HOST", help="Address to listen on.", rich_help_panel=_SERVER)]
Port = Annotated[
    int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.", rich_help_panel=_SERVER)
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", envvar="HALFBYTE_API_KEY", show_envvar=True, help="Key that requests must bring.",
        show_default="none", rich_help_panel=_SERVER,
    ),
]  # fmt: skip
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Let other machines in without a key.", rich_help_panel=_SERVER)
]
Replicas = Annotated[
    int,
    typer.Option(
        metavar="N", min=1, max=1024, help="Processes that answer, each on a GPU or on CPU threads of its own.",
        rich_help_panel=_SERVER,
    ),
]  # fmt: skip
IdleTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="S", min=0.1, help="Drop a model that nobody has used for S seconds.", show_default="never",
        rich_help_panel=_SERVER,
    ),
]  # fmt: skip
LogPrompts = Annotated[
    bool, typer.Option("--log-prompts", help="Write prompts into the log, too.", rich_help_panel=_SERVER)
]
Sequences = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Answers of a model that are computed at once.", rich_help_panel=_LIMITS),
]
MaxConcurrent = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Requests that are answered at once.", show_default=f"{CONCURRENT} for each replica",
        rich_help_panel=_LIMITS,
    ),
]  # fmt: skip
MaxQueue = Annotated[
    int, typer.Option(metavar="N", min=0, help="Requests that may wait for their turn.", rich_help_panel=_LIMITS)
]
Timeout = Annotated[
    float, typer.Option(metavar="S", min=0.1, help="Seconds that a request may take.", rich_help_panel=_LIMITS)
]
Grace = Annotated[
    float,
    typer.Option(metavar="S", min=0, help="Seconds to finish answers after SIGTERM.", rich_help_panel=_LIMITS),
]


@takes_model("revision", "offline", *RUN, *ADAPTERS)
def serve(
    models: Models = None,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key: ApiKey = None,
    insecure: Insecure = False,
    replicas: Replicas = 1,
    chosen: Chosen,
    sequences: Sequences = SEQUENCES,
    max_concurrent: MaxConcurrent = None,
    max_queue: MaxQueue = 128,
    timeout: Timeout = 600.0,
    grace: Grace = 15.0,
    idle_timeout: IdleTimeout = None,
    log_prompts: LogPrompts = False,
) -> None:
    """Answer requests over HTTP, as OpenAI and Anthropic do."""
    try:
        import httpx2  # noqa: F401
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError.not_installed("The server", error.name or "a package", "server") from error
    from halfbyte.server.settings import Settings

    settings = Settings(
        host=host, port=port, api_key=api_key, insecure=insecure, timeout_s=timeout, grace_s=grace,
        max_concurrent=max_concurrent or CONCURRENT * replicas, max_queue=max_queue, log_prompts=log_prompts,
    )  # fmt: skip
    run = replace(chosen.run, sequences=sequences, logit_rows=max(LOGIT_ROWS, sequences))
    sources = _sources(models or [None], chosen, run)
    if replicas == 1:
        _serve_alone(sources, settings, idle_timeout)
    else:
        _serve_with(replicas, sources, run, settings, idle_timeout)


def _serve_alone(sources: list[Source], settings: Settings, idle_timeout: float | None) -> None:
    from halfbyte.server.app import create_app
    from halfbyte.server.models import loaded_lines
    from halfbyte.server.registry import Registry

    registry = Registry(sources, idle_timeout)

    async def begin() -> None:
        for line in loaded_lines(sources[0].name, await registry.start()):
            note(line)

    _listen(create_app(registry, settings), settings, begin, sources)


def _serve_with(
    count: int, sources: list[Source], run: RunOptions, settings: Settings, idle_timeout: float | None
) -> None:
    """Serve with some processes behind this one."""
    from halfbyte.placement import part
    from halfbyte.server.forwarding import create_front
    from halfbyte.server.logs import to_stderr
    from halfbyte.server.replicas import LocalReplicas
    from halfbyte.server.worker import Order

    inner = replace(settings, host="127.0.0.1", port=0, grace_s=1.0, behind=True)
    models = tuple((source.name, str(source.path.absolute())) for source in sources)
    orders = [Order(str(place), count, models, part(run, place, count), inner, idle_timeout) for place in range(count)]
    replicas = LocalReplicas(orders, to_stderr)

    async def begin() -> None:
        for name, lines in (await replicas.start()).items():
            for line in lines:
                note(f"replica {name}: {line}")

    _listen(create_front(replicas, settings), settings, begin, sources)


def _listen(app: ASGIApp, settings: Settings, begin: Callable[[], Awaitable[None]], sources: list[Source]) -> None:
    """Serve an application until a signal comes.

    Args:
        begin: Gets ready; awaited before the first connection is accepted.
    """
    from halfbyte.server.http import HttpServer, bind
    from halfbyte.server.logs import to_stderr

    with bind(settings.host, settings.port) as listening:

        async def ready() -> None:
            await begin()
            for other in sources[1:]:
                note(f"{other.name}: {size(other.nbytes)}, loaded when it is asked for")
            shown = f"[{settings.host}]" if ":" in settings.host else settings.host
            note(f"listening on http://{shown}:{listening.getsockname()[1]}/v1")

        try:
            HttpServer(app, settings, ready, to_stderr).run([listening])
        except SystemExit as end:
            if end.code != EXIT_SIGNAL + signal.SIGTERM:
                raise


def _sources(models: Sequence[str | None], chosen: Chosen, run: RunOptions) -> list[Source]:
    """What is to be served, downloaded if need be; None is the pocket model.

    Raises:
        UsageError: Two have the same name.
    """
    from halfbyte.model import locate
    from halfbyte.server.registry import Source

    sources: list[Source] = []
    for given in models:
        name, model = _named(given)
        if any(source.name == name for source in sources):
            raise UsageError(f"two models are called {name}.", "Name one of them: NAME=MODEL.")
        path = locate(model, chosen.revision, chosen.offline)
        sources.append(Source(name, path, partial(_load, path, run), tuple(run.adapters)))
    if (run.adapters or run.merge) and len(sources) > 1:
        raise UsageError("an adapter is for one model, and there are several.", "Serve that model alone.")
    if sources[0].name in run.adapters:
        raise UsageError(f"a model and an adapter are both called {sources[0].name}.", "Name one of them: NAME=PATH.")
    return sources


def _named(given: str | None) -> tuple[str, str | None]:
    """Name and model of an argument."""
    from halfbyte.server.registry import default_name

    if given is None:
        return "pocket", None
    name, equals, model = given.partition("=")
    return (name, model) if equals and name and not Path(given).exists() else (default_name(given), given)


def _load(path: Path, run: RunOptions) -> Model:
    from halfbyte.model import load

    with late_bar() as progress:
        return load(path, run, progress=progress)

"""Models by name: loaded when they are asked for, dropped when nobody has asked for a while or memory is short.

Everything here runs in the event loop; loading and closing run in a thread of their own, one at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from halfbyte.checkpoint.manifest import MANIFEST_NAME, read_manifest
from halfbyte.errors import DeviceError, HalfbyteError
from halfbyte.model import Model
from halfbyte.sampling.sampler import InvalidLogitsError
from halfbyte.server.errors import ApiError, UnavailableError
from halfbyte.system import available_memory

ROOM = 1.25
"""Free memory that a model should find, in sizes of its files: weights, and some cache."""
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A model that can be served.

    Attributes:
        name: What requests call it.
        path: Where its files are.
        load: Loads it; called in a thread.
        adapters: Names of the adapters that it is loaded with. Each is a model of its own to those who ask.
    """

    name: str
    path: Path
    load: Callable[[], Model]
    adapters: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    @cached_property
    def quality(self) -> dict[str, float]:
        """What its manifest tells: `bits_per_weight`, and if they were measured `kl_divergence`, `perplexity_ratio`."""
        path = self.path / MANIFEST_NAME
        try:
            manifest = read_manifest(path) if path.is_file() else None
        except HalfbyteError:
            manifest = None
        if manifest is None:
            return {}
        measured = manifest.quality.get("divergence")
        known = measured if isinstance(measured, Mapping) else {}
        figures = {
            "bits_per_weight": manifest.bits_per_weight,
            "kl_divergence": known.get("kl_mean"),
            "perplexity_ratio": known.get("ppl_ratio"),
        }
        return {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}


@dataclass(eq=False)
class Loaded:
    """A model in memory. Once it is retired, nobody gets it any more, and its last user closes it."""

    model: Model
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    retired: bool = False


@dataclass(eq=False)
class Entry:
    """A name, and its model if it is loaded."""

    source: Source
    loaded: Loaded | None = None
    loads: int = 0


class Registry:
    """The models of a server.

    Args:
        sources: At least one; the first answers requests that name no model.
        idle_timeout_s: Seconds without a request after which a model is dropped; None for never.
    """

    def __init__(self, sources: Iterable[Source], idle_timeout_s: float | None = None) -> None:
        self._entries = {source.name: Entry(source) for source in sources}
        self._adapters = {name: entry for entry in self.entries for name in entry.source.adapters}
        self._idle_timeout_s = idle_timeout_s
        self._loading = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="halfbyte models")
        self._watch: asyncio.Task[None] | None = None
        self.created = int(time.time())

    @property
    def entries(self) -> list[Entry]:
        """All models, in the order in which they were given."""
        return list(self._entries.values())

    def name(self, wanted: str | None) -> str:
        """The name of a model, or of an adapter, that a request means; of an adapter also `model:adapter`.

        Raises:
            ApiError: 404, with the names there are.
        """
        if wanted is None:
            return next(iter(self._entries))
        if wanted in self._entries or wanted in self._adapters:
            return wanted
        base, _, adapter = wanted.rpartition(":")
        if base in self._entries and adapter in self._entries[base].source.adapters:
            return adapter
        raise no_model(wanted, [*self._entries, *self._adapters])

    def base(self, name: str) -> str:
        """The name of the model behind that of an adapter; of a model its own."""
        return self._adapters[name].source.name if name in self._adapters else name

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Model]:
        """A model, with an adapter if the name is that of one, loaded if need be; it is not dropped in the meantime.

        If the device fails, the next request has the model loaded anew.

        Raises:
            UnavailableError: It cannot be loaded, or not now.
        """
        entry = self._entries[self.base(name)]
        loaded = await self._loaded(entry)
        try:
            yield loaded.model.with_adapter(name) if name in self._adapters else loaded.model
        except DeviceError as error:
            if not isinstance(error, InvalidLogitsError):
                self._retire(entry, loaded)
            raise
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()
            if loaded.retired and not loaded.users:
                await asyncio.shield(self._in_thread(loaded.model.close))

    async def start(self) -> Model:
        """Load the first model, and begin to drop those that nobody uses."""
        if self._idle_timeout_s is not None:
            self._watch = asyncio.create_task(self._drop_idle(self._idle_timeout_s))
        async with self.use(self.name(None)) as model:
            return model

    async def close(self) -> None:
        """Drop all models; what they still answer ends with an error."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        async with self._loading:
            for entry in self.entries:
                await self._drop(entry)
        self._thread.shutdown()

    async def _loaded(self, entry: Entry) -> Loaded:
        """The model of an entry, with one user more. Who waits may leave; the model is loaded all the same."""
        while entry.loaded is None or entry.loaded.model.engine.closed:
            loading = asyncio.create_task(self._load(entry))
            loading.add_done_callback(_heard)
            await asyncio.shield(loading)
        entry.loaded.users += 1
        return entry.loaded

    async def _load(self, entry: Entry) -> None:
        async with self._loading:
            if entry.loaded is not None and not entry.loaded.model.engine.closed:
                return
            entry.loaded = None
            await self._make_room(entry.source)
            try:
                model = await self._in_thread(entry.source.load)
            except (DeviceError, MemoryError) as error:
                if not await self._drop_least_used(everything=True):
                    raise self._no_room(entry, error) from error
                try:
                    model = await self._in_thread(entry.source.load)
                except (HalfbyteError, MemoryError) as again:
                    raise self._no_room(entry, again) from again
            except HalfbyteError as error:
                raise UnavailableError(
                    f"The model {entry.source.name} cannot be loaded: {error.message}", error.hint,
                    code="model_unavailable", after_s=60,
                ) from error  # fmt: skip
            entry.loaded, entry.loads = Loaded(model), entry.loads + 1

    def _no_room(self, entry: Entry, error: BaseException) -> UnavailableError:
        busy = [other.source.name for other in self.entries if other.loaded and other is not entry]
        why = error.message if isinstance(error, HalfbyteError) else "there is not enough memory."
        return UnavailableError(
            f"The model {entry.source.name} cannot be loaded now: {why}",
            f"Ask again when {', '.join(busy)} is not in use." if busy else getattr(error, "hint", ""),
            code="model_unavailable", after_s=10,
        )  # fmt: skip

    async def _make_room(self, source: Source) -> None:
        """Drop models that nobody uses, the longest unused first, until a model's files would fit the free memory."""
        wanted = ROOM * await self._in_thread(lambda: source.nbytes)
        while available_memory() < wanted and await self._drop_least_used():
            pass

    async def _drop_least_used(self, *, everything: bool = False) -> bool:
        """Drop the model that nobody has used for longest, or all that nobody uses; False if there is none."""
        unused = [entry for entry in self.entries if entry.loaded is not None and not entry.loaded.users]
        unused.sort(key=lambda entry: entry.loaded.used if entry.loaded else 0)
        for entry in unused if everything else unused[:1]:
            await self._drop(entry)
        return bool(unused)

    async def _drop_idle(self, timeout_s: float) -> None:
        while True:
            await asyncio.sleep(min(1.0, timeout_s / 4))
            async with self._loading:
                for entry in self.entries:
                    loaded = entry.loaded
                    if loaded and not loaded.users and time.monotonic() - loaded.used >= timeout_s:
                        await self._drop(entry)

    async def _drop(self, entry: Entry) -> None:
        loaded, entry.loaded = entry.loaded, None
        if loaded is not None:
            loaded.retired = True
            await self._in_thread(loaded.model.close)

    def _retire(self, entry: Entry, loaded: Loaded) -> None:
        loaded.retired = True
        if entry.loaded is loaded:
            entry.loaded = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def default_name(model: str) -> str:
    """What a model is called that was given no name: a hub id is its own, and a path its last part."""
    path = Path(model).absolute()
    if not path.exists():
        return model
    return path.stem if path.is_file() else path.name


def no_model(wanted: str, names: Iterable[str]) -> ApiError:
    """The error for a name that no model has, with the names there are."""
    return ApiError(
        404, f"There is no model {wanted[:80]!r}.", f"There are {', '.join(names)}.", code="model_not_found",
        param="model",
    )  # fmt: skip


def _heard(task: asyncio.Task[None]) -> None:
    """Take the error of a task for which nobody waits any more."""
    if not task.cancelled():
        task.exception()

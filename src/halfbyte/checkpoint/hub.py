"""Models by name: a folder, a GGUF file, or a Hugging Face id, whose files are downloaded to the local cache.

`org/name` means the repository's safetensors weights, or its GGUF file if it has no others; `org/name:Q4_K_M` names
one of several GGUF files. A short name of the catalog, such as `phi-4-mini`, stands for the id of its repository.

A revision is turned into its commit once, and everything comes from that commit. Only the files that Halfbyte reads
are downloaded: never pickles, never second copies of the weights. The cache is huggingface_hub's own
(`models--org--name/{refs,blobs,snapshots/<commit>}`), shared with other programs.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from halfbyte.checkpoint.adapter import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from halfbyte.checkpoint.folder import CONFIG_NAME, SETTINGS
from halfbyte.checkpoint.gguf.choice import choose, gguf_models, named_models, parts
from halfbyte.checkpoint.manifest import MANIFEST_NAME
from halfbyte.checkpoint.open import OWN_FILES, is_gguf
from halfbyte.checkpoint.shards import INDEX_NAME, PICKLES, WEIGHTS_NAME, shard_names
from halfbyte.errors import DownloadError, HalfbyteError, ModelNotFoundError, UnsupportedModelError, UsageError
from halfbyte.models.catalog import HUB_IDS, resembling

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_WEB = re.compile(r"^(https?://)?(huggingface\.co|hf\.co)/")
"""What stands before an id in a browser, and for Ollama."""
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECOND_COPIES = re.compile(r"(consolidated|adapter).*")
_EXPECTED = (CONFIG_NAME, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""Files that nearly every repository has: a cached commit with these and the weights needs no look at the hub."""

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache whose files are all there.

    Attributes:
        id: By what it is named: `org/name`, or `org/name:Q4_K_M` for a GGUF file.
        revision: The commit.
        path: The folder, or the (first) GGUF file.
    """

    id: str
    revision: str
    path: Path


@dataclass(frozen=True)
class Removable:
    """What can be removed from the cache: all that it holds of a hub id, or one of its GGUF models.

    Attributes:
        id: `org/name`, or `org/name:Q4_K_M`.
        repository: The folder with all that the cache holds of the hub id.
        paths: What is deleted: that folder, or files and links in it.
        revisions: How many commits have it.
        nbytes: Bytes that are freed: of all files that nothing else uses, each counted once.
    """

    id: str
    repository: Path
    paths: tuple[Path, ...]
    revisions: int
    nbytes: int


class _UnreachableError(DownloadError):
    """The hub did not answer, or the connection broke; a cached copy can be used instead."""


def resolve(model: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The path of a model: the folder or GGUF file named, or the cached snapshot of a hub id, downloaded if need be.

    Args:
        model: A folder, a GGUF file, a short name, or `org/name`, with `:Q4_K_M` or another GGUF file of it, and
            `@revision`.
        revision: Branch, tag or commit of a hub id; `main` by default.
        offline: Whether only the local cache may be used; so too with HF_HUB_OFFLINE=1.

    Raises:
        ModelNotFoundError: No such folder, repository, revision or GGUF file, or several that could be meant.
        UnsupportedModelError: The repository has neither safetensors weights nor GGUF files.
        DownloadError: It could not be fetched; the message says why.
        UsageError: A revision that cannot be meant.
    """
    if not model.strip():
        raise ModelNotFoundError("The name of the model is empty.", "Name a folder, a GGUF file or a hub id.")
    folder = Path(model).expanduser()
    if folder.is_dir() or is_gguf(folder):
        if revision is not None:
            raise UsageError(
                f"{model} is on this machine and has no revision {revision!r}.", "Name a revision only with a hub id."
            )
        return folder
    if _looks_like_path(model, folder):
        what = "is a file, not a model folder" if folder.exists() else "does not exist"
        raise ModelNotFoundError(f"{model} {what}.", "Name a folder with *.safetensors, a GGUF file, or a hub id.")
    repo, choice, wanted = _parse(model, revision)
    cached = _cached(repo, choice, wanted)
    if offline or _offline():
        return cached or _not_cached(model, repo, wanted)
    whole = choice is not None or (cached is not None and all((cached / name).is_file() for name in _EXPECTED))
    if cached and whole and _COMMIT.fullmatch(wanted):
        return cached
    try:
        return _download(repo, choice, wanted)
    except _UnreachableError as error:
        if cached is None:
            raise
        logger.warning(
            "%s Using the copy of %s in the cache (%s).", error.message, repo, (commit_of(cached) or "")[:12]
        )
        return cached


def resolve_adapter(name: str, *, offline: bool = False) -> Path:
    """The folder of an adapter: the one named, or the cached snapshot of a hub id, downloaded if need be.

    Args:
        name: A folder or `org/name`, with `@revision`.

    Raises as `resolve` does.
    """
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if not name or _looks_like_path(name, folder):
        what = "is a file, not a folder" if name and folder.exists() else "does not exist"
        raise ModelNotFoundError(f"the adapter {name!r} {what}.", f"Name a folder with {ADAPTER_CONFIG_NAME}.")
    repo, _, wanted = _parse(name, None)
    snapshot = _snapshot(repo, wanted)
    files = (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME)
    cached = snapshot if snapshot and all((snapshot / file).is_file() for file in files) else None
    if cached and (offline or _offline() or _COMMIT.fullmatch(wanted)):
        return cached
    if offline or _offline():
        raise DownloadError(f"{repo} at {wanted} is not in the local cache.", "Leave out the option, or download it.")
    try:
        return _download_adapter(repo, wanted)
    except _UnreachableError:
        if cached is None:
            raise
        return cached


def pull(repo: str, *, revision: str | None = None, pick: Callable[[Mapping[str, int]], str] | None = None) -> Path:
    """The folder or GGUF file of a hub id, after fetching what is missing; what is here is kept.

    Args:
        pick: Called where none of several GGUF models is named, with the bytes of each by its name; returns a name.

    Raises as `resolve` does.
    """
    repo, choice, wanted = _parse(repo, revision)
    if _offline():
        raise DownloadError(f"{repo} cannot be downloaded: HF_HUB_OFFLINE is set.", "Unset it, then pull again.")
    return _download(repo, choice, wanted, pick)


def dataset_file(repo: str, name: str) -> Path:
    """A file of a data set on the hub, from the cache or downloaded. Raises what `pull` raises."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(repo, name, cache_dir=_cache(), repo_type="dataset")
    if isinstance(known, str):
        return Path(known)
    if _offline():
        raise DownloadError(f"{repo} cannot be downloaded: HF_HUB_OFFLINE is set.", "Unset it and try again.")
    with _explained(repo, "main"):
        HfApi(library_name="halfbyte").dataset_info(repo, timeout=_TIMEOUT_S)
        return Path(hf_hub_download(repo, name, repo_type="dataset", library_name="halfbyte", cache_dir=_cache()))


def installed() -> list[CachedModel]:
    """Every model in the cache that is complete, by id and commit; none of them is opened."""
    found = []
    for snapshot in sorted(_cache().glob("models--*--*/snapshots/*")):
        repo = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        models = {repo: snapshot} if _complete(snapshot) else {}
        models |= {f"{repo}:{name}": files[0] for name, files in _gguf_files(snapshot).items()}
        found += [CachedModel(name, snapshot.name, path) for name, path in models.items()]
    return found


def removable(model: str) -> Removable:
    """What the cache holds of a hub id, or of a GGUF model such as `org/name:Q4_K_M`, in every revision.

    Raises:
        ModelNotFoundError: It is not in the cache.
        UsageError: A folder or file is named that is not the cache's, or a revision.
    """
    if _looks_like_path(model, Path(model).expanduser()):
        raise UsageError(f"{model} is not in the Hugging Face cache.", "Name a hub id, or delete the files yourself.")
    name, at, revision = model.partition("@")
    if at:
        raise UsageError(f"{name} can only be removed in every revision.", f"Leave out @{revision}.")
    repo, choice, _ = _parse(model, None)
    folder = _repo_folder(repo)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{repo} is not in the local cache.", "`halfbyte list` shows what is.")
    if choice:
        return _removable_gguf(repo, choice, folder)
    return Removable(repo, folder, (folder,), len(list(folder.glob("snapshots/*"))), _nbytes(folder.rglob("*")))


def _removable_gguf(repo: str, choice: str, folder: Path) -> Removable:
    """A GGUF model of a repository, with those of its files that no other name in the cache stands for."""
    snapshots = {snapshot: _gguf_named(repo, snapshot, choice) for snapshot in folder.glob("snapshots/*")}
    links = [link for files in snapshots.values() for link in files]
    if not links:
        here = _ggufs_here(repo)
        raise ModelNotFoundError(
            f"{repo}:{choice} is none of the GGUF models of {repo} in the local cache.",
            f"Name {' or '.join(here)}." if here else "`halfbyte list` shows what is there.",
        )
    others = {path for path in folder.glob("snapshots/**/*") if not path.is_dir()} - set(links)
    files = {link.resolve() for link in links} - {other.resolve() for other in others}
    files = {file for file in files if file.is_relative_to(folder.resolve())}  # not what a link of the user's leads to
    nothing_else = not others and all(blob.resolve() in files for blob in folder.glob("blobs/*"))
    paths = (folder,) if nothing_else else (*files, *links)
    nbytes = _nbytes(folder.rglob("*") if nothing_else else files)
    return Removable(f"{repo}:{choice}", folder, paths, sum(map(bool, snapshots.values())), nbytes)


def _gguf_named(repo: str, snapshot: Path, choice: str) -> list[Path]:
    """The files of a snapshot that belong to a GGUF model, also to one that is not complete."""
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.gguf")]
    with suppress(ModelNotFoundError):
        return [snapshot / name for name in choose(repo, names, choice)]
    return []


def _nbytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file() and not path.is_symlink())


def remove(found: Removable) -> None:
    """Delete it from the cache.

    Raises:
        HalfbyteError: Something could not be deleted.
    """
    for path in found.paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise HalfbyteError(f"{path} cannot be deleted: {error.strerror}.", "Check its permissions.") from error
        if path.parent.parent.parent.name == "snapshots":  # a folder of a snapshot, in which no other file may be left
            with suppress(OSError):
                path.parent.rmdir()


def commit_of(path: Path) -> str | None:
    """The commit that a folder or file of the cache belongs to; None for one that lies elsewhere."""
    if not path.is_relative_to(_cache()):
        return None
    return next((part for part in reversed(path.parts) if _COMMIT.fullmatch(part)), None)


def _looks_like_path(model: str, folder: Path) -> bool:
    name = _WEB.sub("", model).partition("@")[0].partition(":")[0]
    is_file = model.lower().endswith(".gguf") and ":" not in model
    return is_file or name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1 or folder.exists()


def _parse(model: str, revision: str | None) -> tuple[str, str | None, str]:
    """The id, GGUF file and revision of `org/name:file@revision`, the last two optional."""
    named, _, inline = _WEB.sub("", model).partition("@")
    repo, _, choice = named.partition(":")
    if repo in HUB_IDS and choice:
        raise ModelNotFoundError(
            f"{repo} has no variant {choice!r}: it is {HUB_IDS[repo]}, whose weights are not quantized.",
            "To pack them while loading: weights='q4g32'. A GGUF file of a repository is named org/name-GGUF:Q4_K_M.",
        )
    repo = HUB_IDS.get(repo, repo)
    if not _ID.fullmatch(repo) or "--" in repo or ".." in repo:
        raise ModelNotFoundError(
            f"{model!r} is neither a folder, a Hugging Face id nor a short name.", _names_meant(model)
        )
    if revision is not None and inline and inline != revision:
        raise UsageError(f"{model} and revision {revision!r} contradict each other.", "Name one revision.")
    wanted = revision or inline or "main"
    if not _REVISION.fullmatch(wanted) or ".." in wanted:
        raise UsageError(f"{wanted!r} is not a revision.", "Name a branch, a tag or a commit.")
    return repo, choice or None, wanted


def _names_meant(model: str) -> str:
    """What may be meant by a name that is none."""
    if similar := resembling(model):
        return f"Did you mean {' or '.join(similar)}?"
    return f"An id looks like org/name. Short names are {', '.join(HUB_IDS)}."


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _repo_folder(repo: str) -> Path:
    return _cache() / f"models--{repo.replace('/', '--')}"


def _cached(repo: str, choice: str | None, revision: str) -> Path | None:
    """The complete snapshot of a revision, or its GGUF file, as far as the cache knows it."""
    snapshot = _snapshot(repo, revision)
    if snapshot is None:
        return None
    if choice is None and _complete(snapshot):
        return snapshot
    models = _gguf_files(snapshot)
    if not models:
        return None
    with suppress(ModelNotFoundError):
        files = [str(file.relative_to(snapshot)) for files in models.values() for file in files]
        return snapshot / choose(repo, files, choice)[0]
    return None


def _snapshot(repo: str, revision: str) -> Path | None:
    """The snapshot of a revision, complete or not; None where the cache does not know its commit."""
    folder, commit = _repo_folder(repo), revision
    reference = folder / "refs" / revision
    if not _COMMIT.fullmatch(revision):
        commit = reference.read_text().strip() if reference.is_file() else ""
    return folder / "snapshots" / commit if _COMMIT.fullmatch(commit) else None


def _gguf_files(snapshot: Path) -> dict[str, list[Path]]:
    """The GGUF models of a snapshot that are complete, each with its files, by its name."""
    names = [str(file.relative_to(snapshot)) for file in snapshot.rglob("*.gguf") if file.is_file()]
    models = named_models(names)
    return {name: [snapshot / n for n in files] for name, files in models.items() if len(files) == parts(files[0])}


def _ggufs_here(repo: str) -> list[str]:
    """What the GGUF models of a repository are called that are in the cache."""
    return sorted({found.id for found in installed() if found.id.startswith(f"{repo}:")})


def _complete(snapshot: Path) -> bool:
    """Whether a snapshot has a configuration and all of its weights."""
    if not (snapshot / CONFIG_NAME).is_file():
        return False
    if (snapshot / WEIGHTS_NAME).is_file():
        return True
    index = snapshot / INDEX_NAME
    if index.is_file():
        try:
            return all((snapshot / file).is_file() for file in shard_names(index).values())
        except HalfbyteError:
            return False
    return any(file.is_file() for file in snapshot.glob("*.safetensors"))


def _not_cached(model: str, repo: str, revision: str) -> Path:
    if here := _ggufs_here(repo):
        raise ModelNotFoundError(
            f"{model} is none of the GGUF models of {repo} in the local cache.",
            f"Name {' or '.join(here)}, or download it with `halfbyte pull {model}`.",
        )
    raise DownloadError(
        f"{repo} at {revision} is not {'complete ' * _repo_folder(repo).is_dir()}in the local cache.",
        f"Download it with `halfbyte pull {model}`.",
    )


def _download(
    repo: str, choice: str | None, revision: str, pick: Callable[[Mapping[str, int]], str] | None = None
) -> Path:
    """Fetch what is missing of a revision's needed files, one after the other; returns the snapshot or GGUF file.

    One at a time because an interrupt then stops at once; large files come in parallel chunks anyway,
    where the hub offers them.
    """
    commit, sizes = _listed(repo, revision)
    snapshot = _repo_folder(repo) / "snapshots" / commit
    if choice is not None or _only_gguf(sizes):
        models = named_models(sizes)
        if choice is None and pick is not None and len(models) > 1:
            choice = pick({name: sum(map(sizes.__getitem__, files)) for name, files in models.items()})
        files = choose(repo, sizes, choice)
        _fetch(repo, commit, files, sizes)
        if not _COMMIT.fullmatch(revision):
            _remember(repo, revision, commit)
        return snapshot / files[0]
    patterns = [PurePosixPath(pattern) for pattern in (*SETTINGS, MANIFEST_NAME, *OWN_FILES)]
    settings = [name for name in sizes if any(_matches(PurePosixPath(name), pattern) for pattern in patterns)]
    if CONFIG_NAME not in settings and ADAPTER_CONFIG_NAME in sizes:
        raise ModelNotFoundError(
            f"{repo} is an adapter, not a model.", "Load the model that it was trained on, with adapters or merge."
        )
    if CONFIG_NAME not in settings:
        raise ModelNotFoundError(
            f"{repo} has no {CONFIG_NAME}: it is not a language model.", "Name another repository."
        )
    index = [INDEX_NAME] if INDEX_NAME in sizes and WEIGHTS_NAME not in sizes else []
    _fetch(repo, commit, settings + index, sizes)
    _fetch(repo, commit, _weight_files(repo, snapshot, sizes), sizes)
    if not _COMMIT.fullmatch(revision):
        _remember(repo, revision, commit)
    return snapshot


def _download_adapter(repo: str, revision: str) -> Path:
    """Fetch the two files of an adapter; returns the snapshot."""
    commit, sizes = _listed(repo, revision)
    if ADAPTER_CONFIG_NAME not in sizes:
        raise ModelNotFoundError(f"{repo} has no {ADAPTER_CONFIG_NAME}: it is no adapter.", "Name another repository.")
    if ADAPTER_WEIGHTS_NAME not in sizes:
        raise UnsupportedModelError(
            f"{repo} has no {ADAPTER_WEIGHTS_NAME}.", "Pickles are never read; name an adapter in safetensors."
        )
    _fetch(repo, commit, [ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME], sizes)
    if not _COMMIT.fullmatch(revision):
        _remember(repo, revision, commit)
    return _repo_folder(repo) / "snapshots" / commit


def _listed(repo: str, revision: str) -> tuple[str, dict[str, int]]:
    """The commit that a revision stands for, and the bytes of its files."""
    from huggingface_hub import HfApi

    with _explained(repo, revision):
        info = HfApi(library_name="halfbyte").model_info(
            repo, revision=revision, timeout=_TIMEOUT_S, files_metadata=True
        )
    return str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _matches(name: PurePosixPath, pattern: PurePosixPath) -> bool:
    """Whether a file lies in the pattern's folder and is called as it says."""
    return name.parent == pattern.parent and name.match(pattern.name)


def _only_gguf(sizes: Mapping[str, int]) -> bool:
    """Whether a repository's weights are GGUF files and no others that can be read."""
    return not any(name.endswith((".safetensors", INDEX_NAME)) for name in sizes) and bool(gguf_models(sizes))


def _weight_files(repo: str, snapshot: Path, sizes: Mapping[str, int]) -> list[str]:
    """The safetensors files that make one copy of the weights."""
    if WEIGHTS_NAME in sizes:
        return [WEIGHTS_NAME]
    if INDEX_NAME in sizes:
        return sorted(set(shard_names(snapshot / INDEX_NAME).values()))
    top = [name for name in sizes if "/" not in name and name.endswith(".safetensors")]
    single = [name for name in top if not _SECOND_COPIES.fullmatch(name)]
    if len(single) == 1:
        return single
    pickled = any(Path(name).match(pattern) for name in sizes for pattern in PICKLES)
    raise UnsupportedModelError(
        f"{repo} has its weights only as pickles." if pickled else f"{repo} has no {WEIGHTS_NAME}.",
        "Pickles can run code and are never read; name a repository with safetensors weights."
        if pickled
        else "Name a repository with safetensors weights.",
    )


def _fetch(repo: str, commit: str, names: list[str], sizes: Mapping[str, int]) -> None:
    """Download those of the files that are not in the snapshot yet."""
    from huggingface_hub import hf_hub_download

    snapshot = _repo_folder(repo) / "snapshots" / commit
    missing = [name for name in names if not (snapshot / name).is_file()]
    absent = next((name for name in missing if name not in sizes), None)
    if absent is not None:
        raise DownloadError(
            f"{repo} lacks the file {absent} that its index names.", "Tell its authors, or choose another repository."
        )
    needed = sum(sizes[name] for name in missing)
    with _explained(repo, commit, needed):
        if missing and shutil.disk_usage(_existing(_cache())).free < needed:
            raise OSError(errno.ENOSPC, "not enough free space")
        for name in missing:
            hf_hub_download(repo, name, revision=commit, library_name="halfbyte", cache_dir=_cache())


def _existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _remember(repo: str, revision: str, commit: str) -> None:
    """Note which commit a branch or tag stands for, where the cache can be written."""
    reference = _repo_folder(repo) / "refs" / revision
    fresh = reference.with_name(f"{reference.name}.new")
    with suppress(OSError):
        reference.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(commit)
        fresh.replace(reference)


@contextmanager
def _explained(repo: str, revision: str, needed: int = 0) -> Iterator[None]:
    """Failures of huggingface_hub and of the HTTP and Xet libraries under it, as one-line errors.

    Those libraries differ between versions and share no base class, so every exception is converted.
    """
    try:
        yield
    except Exception as error:
        if _is_disk_full(error):
            for partial in (_repo_folder(repo) / "blobs").glob("*.incomplete"):
                partial.unlink(missing_ok=True)
            raise DownloadError(
                f"The disk of {_cache()} is full: {repo} needs {needed / 1e9:,.2f} GB more.",
                "Free some space, or set HF_HOME to a folder on another disk; files already fetched are kept.",
            ) from error
        raise _explain(error, repo, revision) from error


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is the cause, or the cause of the cause."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: Exception, repo: str, revision: str) -> HalfbyteError:
    """What a failure means to whoever asked for the model."""
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN."
    match error:
        case errors.GatedRepoError():
            return DownloadError(
                f"{repo} is gated: it needs an account that was granted access.",
                f"Ask for access at https://huggingface.co/{repo}, then {login}",
            )
        case errors.RevisionNotFoundError():
            return ModelNotFoundError(f"{repo} has no revision {revision!r}.", "Name a branch, tag or commit it has.")
        case errors.RepositoryNotFoundError():
            return ModelNotFoundError(
                f"There is no repository {repo} on the hub, or it is private.",
                f"Check the name; if it is private, {login}",
            )
        case errors.HfHubHTTPError():
            return _explain_status(error, repo, login)
        case OSError() if error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
            where = error.filename or _cache()
            return DownloadError(
                f"{where} cannot be written: {error.strerror}.", "Check its permissions, or set HF_HOME."
            )
    return _UnreachableError(
        f"The hub could not be reached, or the connection broke, while fetching {repo} ({_reason(error)}).",
        "Check the network and try again; files already fetched are kept.",
    )


def _explain_status(error: Exception, repo: str, login: str) -> HalfbyteError:
    """What an HTTP status means that has no error class of its own."""
    status = int(getattr(getattr(error, "response", None), "status_code", 0) or 0)
    if status in (401, 403):
        return DownloadError(f"The hub refused access to {repo} (HTTP {status}).", f"Check your rights and {login}")
    if status == 429:
        return _UnreachableError("The hub asks for fewer requests (HTTP 429).", f"Wait a little, or {login}")
    if status >= 500:
        return _UnreachableError(f"The hub failed (HTTP {status}).", "Try again later.")
    return DownloadError(f"The hub answered HTTP {status} for {repo}.", "Check the name and the revision.")


def _reason(error: BaseException) -> str:
    """The innermost cause of a failure, in a few words."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__

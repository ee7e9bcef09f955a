"""Models by name, against a small server on this machine that imitates the hub's endpoints."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from halfbyte.checkpoint import hub
from halfbyte.checkpoint.gguf.writer import write_gguf
from halfbyte.errors import DownloadError, InvalidModelError, ModelNotFoundError, UnsupportedModelError, UsageError
from tests.models.test_interchange import small_tokenizer
from tests.models.tiny import tiny
from tests.unit.cli_fakes import error_lines, halfbyte
from tests.unit.test_gguf import write_llama

REPO = "acme/tiny"
FIRST, SECOND = "a" * 40, "b" * 40
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def weights(*names: str, size: int = 64) -> bytes:
    """A safetensors file with a bf16 vector of `size` bytes under each name."""
    spans = {name: [i * size, (i + 1) * size] for i, name in enumerate(names)}
    header = {name: {"dtype": "BF16", "shape": [size // 2], "data_offsets": span} for name, span in spans.items()}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(size * len(names)))


SETTINGS = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"a": 1}',
}
SINGLE = SETTINGS | {"model.safetensors": weights("x", "y")}
SHARDED = SETTINGS | {
    "model.safetensors.index.json": json.dumps({"weight_map": dict(zip("xy", SHARDS, strict=True))}).encode(),
    SHARDS[0]: weights("x"),
    SHARDS[1]: weights("y"),
}
UNWANTED = {
    "pytorch_model.bin": b"pickle", "consolidated.safetensors": weights("x", "y"), "README.md": b"#",
    "original/model.safetensors": weights("z"), "model.gguf": b"GGUF", "training_args.bin": b"pickle",
}  # fmt: skip


class Hub:
    """What the server holds and what was asked of it.

    Attributes:
        revisions: Branch, tag or commit → commit.
        files: Commit → file name → contents.
        refusals: Start of a path → (status, X-Error-Code) it is answered with.
        cuts: File name → how many answers break off half-way.
        small: Names of files that are not kept as large ones: Git's SHA-1 is their ETag.
        requests: (method, path, Range header) of every request.
    """

    def __init__(self) -> None:
        self.revisions = {"main": FIRST, FIRST: FIRST}
        self.files: dict[str, dict[str, bytes]] = {FIRST: dict(SINGLE)}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.cuts: dict[str, int] = {}
        self.small: set[str] = set()
        self.requests: list[tuple[str, str, str | None]] = []

    def downloads(self) -> list[str]:
        """Names of the files whose contents were asked for."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for kind, path, _ in self.requests
            if kind == "GET" and "/resolve/" in path
        ]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        for start, (status, code) in self.hub.refusals.items():
            if path.startswith(start):
                return self.send(status, b"{}", {"X-Error-Code": code})
        if path.startswith(f"/api/models/{REPO}/revision/"):
            return self.describe(path.removeprefix(f"/api/models/{REPO}/revision/"))
        if path.startswith(f"/{REPO}/resolve/"):
            commit, name = path.removeprefix(f"/{REPO}/resolve/").split("/", 1)
            return self.file(commit, name)
        return self.send(401 if path.startswith("/api") else 404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def describe(self, revision: str) -> None:
        commit = self.hub.revisions.get(revision)
        if commit is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.hub.files[commit].items()]
        return self.send(200, json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode(), {})

    def file(self, commit: str, name: str) -> None:
        data = self.hub.files[commit].get(name)
        if data is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        checksum = git_sha1(data) if name in self.hub.small else hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{checksum}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        self.send(206 if asked else 200, data, headers, cut=self.command == "GET" and self.take_cut(name))

    def take_cut(self, name: str) -> bool:
        self.hub.cuts[name] = self.hub.cuts.get(name, 0) - 1
        return self.hub.cuts[name] >= 0

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no token, and no proxy between here and here."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "hub"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, as the hub that huggingface_hub talks to."""
    state = Hub()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    point_at(monkeypatch, http.server_address[1])
    yield state
    huggingface_hub.close_session()
    http.shutdown()
    thread.join()
    http.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def unplug(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Calling it leaves nobody at the hub's address."""
    return lambda: point_at(monkeypatch, 9)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def partial_files(cache: Path) -> list[Path]:
    return [*cache.rglob("*.incomplete"), *cache.rglob("*.new")]


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert hub.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match="is on this machine and has no revision 'v1'"):
        hub.resolve(str(tmp_path), revision="v1")


@pytest.mark.parametrize("model", ["./nowhere", "~/nowhere", "/nowhere/at/all", "a/b/c", "../nowhere", "models\\tiny"])
def test_what_looks_like_a_path_is_never_looked_up(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        hub.resolve(model)
    assert server.requests == []


def test_a_file_is_not_a_model(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="is a file, not a model folder"):
        hub.resolve(str(tmp_path / "model.bin"))


def test_a_gguf_file_is_used_as_it_is(server: Hub, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"")
    assert hub.resolve(str(path)) == path


@pytest.mark.parametrize(
    "model", ["llama", "acme/", "/x", "acme/ti ny", "acme/-tiny", "acme/a--b", "acme/a..b", "ácme/x"]
)
def test_what_is_no_id_is_never_looked_up(server: Hub, model: str) -> None:
    with pytest.raises(ModelNotFoundError):
        hub.resolve(model)
    assert server.requests == []


@pytest.mark.parametrize("revision", ["../main", "a b", "-x", "a/../../b", "x" * 300])
def test_what_is_no_revision_is_never_looked_up(server: Hub, revision: str) -> None:
    with pytest.raises(UsageError, match="is not a revision"):
        hub.resolve(REPO, revision=revision)
    assert server.requests == []


def test_two_revisions_contradict(server: Hub) -> None:
    with pytest.raises(UsageError, match="contradict"):
        hub.resolve(f"{REPO}@main", revision="v1")


@pytest.mark.parametrize("files", [SINGLE, SHARDED], ids=["single", "sharded"])
def test_only_needed_files_are_fetched(server: Hub, files: dict[str, bytes]) -> None:
    server.files[FIRST] = files | UNWANTED | {"chat_template.jinja": b"{{ x }}"}
    folder = hub.resolve(REPO)
    assert contents(folder) == files | {"chat_template.jinja": b"{{ x }}"}
    assert folder.name == FIRST
    assert sorted(server.downloads()) == sorted(contents(folder))


def test_one_file_of_another_name_is_fetched(server: Hub) -> None:
    server.files[FIRST] = SETTINGS | UNWANTED | {"weights.safetensors": weights("x")}
    assert "weights.safetensors" in contents(hub.resolve(REPO))


@pytest.mark.parametrize(
    ("files", "message"),
    [({"pytorch_model.bin": b""}, "only as pickles"), ({"a.txt": b""}, r"has no model\.safetensors")],
)
def test_a_repository_without_safetensors(server: Hub, files: dict[str, bytes], message: str) -> None:
    server.files[FIRST] = SETTINGS | files
    with pytest.raises(UnsupportedModelError, match=message):
        hub.resolve(REPO)


def test_a_repository_without_configuration(server: Hub) -> None:
    server.files[FIRST] = {"README.md": b"#"}
    with pytest.raises(ModelNotFoundError, match="not a language model"):
        hub.resolve(REPO)
    assert server.downloads() == []


def test_an_index_that_names_a_missing_file(server: Hub) -> None:
    server.files[FIRST] = {name: data for name, data in SHARDED.items() if name != SHARDS[1]}
    with pytest.raises(DownloadError, match=f"lacks the file {SHARDS[1]}"):
        hub.resolve(REPO)


def test_everything_comes_from_one_commit(server: Hub) -> None:
    hub.resolve(REPO)
    resolved = [path for _, path, _ in server.requests if "/resolve/" in path]
    assert all(f"/resolve/{FIRST}/" in path for path in resolved)


def test_a_branch_that_moved_is_fetched_anew_and_the_old_commit_stays(server: Hub) -> None:
    old = hub.resolve(REPO)
    server.revisions |= {"main": SECOND}
    server.files[SECOND] = SINGLE | {"config.json": b'{"model_type": "phi3"}'}
    new = hub.resolve(REPO)
    assert (old.name, new.name) == (FIRST, SECOND)
    assert json.loads((new / "config.json").read_text()) == {"model_type": "phi3"}
    assert hub.resolve(f"{REPO}@{FIRST}") == old
    assert hub.resolve(REPO, offline=True) == new


def test_tags_and_branches_with_slashes(server: Hub) -> None:
    server.revisions |= {"refs/pr/1": SECOND}
    server.files[SECOND] = SINGLE
    assert hub.resolve(REPO, revision="refs/pr/1").name == SECOND
    assert hub.resolve(f"{REPO}@refs/pr/1", offline=True).name == SECOND


def test_a_cached_commit_needs_no_network(server: Hub) -> None:
    folder = hub.pull(REPO)
    server.requests.clear()
    assert hub.resolve(REPO, revision=FIRST) == folder
    assert server.requests == []


def test_a_cached_branch_is_only_looked_up(server: Hub) -> None:
    hub.pull(REPO)
    server.requests.clear()
    hub.resolve(REPO)
    assert server.requests == [("GET", f"/api/models/{REPO}/revision/main", None)]


def test_offline_uses_the_cache_alone(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=rf"{REPO} at main is not in the local cache") as caught:
        hub.resolve(REPO, offline=True)
    assert f"halfbyte pull {REPO}" in caught.value.hint
    folder = hub.pull(REPO)
    server.requests.clear()
    assert hub.resolve(REPO, offline=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve(REPO) == folder
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        hub.pull(REPO)
    assert server.requests == []


def test_without_network_the_cache_is_used_with_a_note(
    server: Hub, unplug: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = hub.pull(REPO)
    unplug()
    with caplog.at_level(logging.WARNING, "halfbyte"):
        assert hub.resolve(REPO) == folder
    assert "could not be reached" in caplog.text
    assert FIRST[:12] in caplog.text
    with pytest.raises(DownloadError, match="could not be reached"):
        hub.pull(REPO)


def test_without_network_and_cache(server: Hub, unplug: Callable[[], None]) -> None:
    unplug()
    with pytest.raises(DownloadError, match="could not be reached") as caught:
        hub.resolve(REPO)
    assert "\n" not in str(caught.value)


def test_a_hub_with_problems_counts_as_no_network(server: Hub) -> None:
    folder = hub.pull(REPO)
    server.refusals["/api"] = (503, "")
    assert hub.resolve(REPO) == folder
    with pytest.raises(DownloadError, match="HTTP 503"):
        hub.pull(REPO)


def test_no_such_repository(server: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="no repository acme/other on the hub, or it is private") as caught:
        hub.resolve("acme/other")
    assert "hf auth login" in caught.value.hint


def test_no_such_revision(server: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match="has no revision 'v9'"):
        hub.resolve(REPO, revision="v9")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_get_in(server: Hub, cache: Path, status: int) -> None:
    server.refusals[f"/{REPO}/resolve"] = (status, "GatedRepo")
    with pytest.raises(DownloadError, match="is gated") as caught:
        hub.resolve(REPO)
    assert "hf auth login" in caught.value.hint
    assert f"https://huggingface.co/{REPO}" in caught.value.hint
    assert partial_files(cache) == []


@pytest.mark.parametrize(("status", "message"), [(403, "refused access"), (429, "HTTP 429"), (418, "HTTP 418")])
def test_other_answers(server: Hub, status: int, message: str) -> None:
    server.refusals["/api"] = (status, "")
    with pytest.raises(DownloadError, match=message):
        hub.resolve(REPO)


def test_a_broken_connection_is_resumed(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    data = weights("x", size=100_000)
    server.files[FIRST] = SETTINGS | {"model.safetensors": data}
    server.cuts["model.safetensors"] = 1
    assert (hub.resolve(REPO) / "model.safetensors").read_bytes() == data
    ranges = [asked for kind, path, asked in server.requests if kind == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) >= 40_000


def breaking(error: BaseException) -> Callable[..., None]:
    """A download that writes a little and fails, for the weights; others go through."""
    whole = file_download.http_get

    def http_get(url: str, temp_file: BinaryIO, **options: Any) -> None:
        if url.endswith(".safetensors"):
            temp_file.write(b"half")
            temp_file.flush()
            raise error
        whole(url, temp_file, **options)

    return http_get


@pytest.mark.parametrize(
    ("error", "seen", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DownloadError, r"disk of .* is full: acme/tiny needs"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DownloadError, "is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), DownloadError, "/x cannot be written"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), DownloadError, "connection broke"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
    ids=["full", "full under Xet", "permission", "network", "ctrl-c"],
)
def test_a_download_that_fails_leaves_nothing_half_written(
    server: Hub,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    seen: type[BaseException],
    message: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", breaking(error))
        with pytest.raises(seen, match=message):
            hub.resolve(REPO)
    assert partial_files(cache) == []
    assert hub.installed() == []
    with pytest.raises(DownloadError, match=r"not (complete )?in the local cache"):
        hub.resolve(REPO, offline=True)
    server.requests.clear()
    assert contents(hub.resolve(REPO)) == SINGLE
    assert server.downloads() == ["model.safetensors"]


def test_a_full_disk_removes_what_another_version_left(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = cache / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"half")
    monkeypatch.setattr(file_download, "http_get", breaking(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DownloadError, match="is full"):
        hub.resolve(REPO)
    assert partial_files(cache) == []


def test_too_little_space_is_known_before_the_download(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(DownloadError, match=r"is full: acme/tiny needs 0\.00 GB more"):
        hub.resolve(REPO)
    assert server.downloads() == []


def test_installed_lists_what_is_complete(server: Hub, cache: Path) -> None:
    assert hub.installed() == []
    folder = hub.pull(REPO)
    assert hub.installed() == [hub.CachedModel(REPO, FIRST, folder)]
    (folder / "model.safetensors").unlink()
    assert hub.installed() == []


def test_list_passes_over_what_cannot_be_opened(server: Hub) -> None:
    hub.pull(REPO)
    server.revisions["broken"] = SECOND
    server.files[SECOND] = SINGLE | {"model.safetensors": b"nonsense"}
    hub.pull(REPO, revision="broken")
    result = halfbyte("list", "--json")
    pocket, model = json.loads(result.stdout)
    assert f"{REPO} cannot be opened" in result.stderr
    assert (pocket["id"], pocket["revision"]) == ("pocket", None)
    assert {name: model[name] for name in ("id", "revision", "architecture", "bytes", "formats", "parameters")} == {
        "id": REPO, "revision": FIRST, "architecture": "llama", "bytes": 128, "formats": {"bf16": 2},
        "parameters": None,
    }  # fmt: skip


def test_remove_frees_every_revision(server: Hub, cache: Path) -> None:
    hub.pull(REPO)
    server.revisions["next"] = SECOND
    server.files[SECOND] = SINGLE | {"config.json": b'{"model_type": "phi3"}'}
    hub.pull(REPO, revision="next")
    expected = sum(len(data) for data in SINGLE.values()) + len(b'{"model_type": "phi3"}')
    expected += sum(len(revision.read_bytes()) for revision in cache.glob("models--*/refs/*"))
    found = hub.removable(REPO)
    assert (found.id, found.revisions, found.nbytes) == (REPO, 2, expected)
    hub.remove(found)
    assert hub.installed() == []
    assert not (cache / "models--acme--tiny").exists()
    with pytest.raises(ModelNotFoundError, match="not in the local cache"):
        hub.removable(REPO)


def test_rm_names_what_it_deletes_and_who_else_uses_it(server: Hub, cache: Path) -> None:
    hub.pull(REPO)
    result = halfbyte("rm", REPO, stdin="n\n")
    assert (result.exit_code, hub.installed() == []) == (1, False)
    folder = cache / "models--acme--tiny"
    assert f"{folder} is part of the Hugging Face cache: other programs that use this model lose it" in result.stderr
    assert f"Delete {REPO} (1 revision, " in result.stderr
    assert "freed" in halfbyte("rm", REPO, "--yes").stderr
    assert hub.installed() == []


def test_only_what_was_downloaded_is_removed(server: Hub, tmp_path: Path) -> None:
    for model, words in ((str(tmp_path), "is not in the Hugging Face cache"), ("pocket", "is part of Halfbyte")):
        result = halfbyte("rm", model, "--yes")
        assert result.exit_code == UsageError.exit_code
        assert words in error_lines(result)[0]
    assert tmp_path.is_dir()


def change(file: Path) -> None:
    """Change one bit near the end of a file."""
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


def git_sha1(data: bytes) -> str:
    """What Git calls a file with these bytes, which is how the hub calls small ones."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def test_verify_compares_files_with_the_checksums_of_the_hub(server: Hub) -> None:
    server.small = {"config.json"}
    folder = hub.pull(REPO)
    assert (folder / "config.json").readlink().name == git_sha1(SETTINGS["config.json"])
    found = json.loads(halfbyte("verify", REPO, "--json").stdout)
    nbytes = sum(map(len, SINGLE.values()))
    assert found == {"id": REPO, "path": str(folder), "tensors": 0, "files": len(SINGLE), "nbytes": nbytes}
    assert f"{REPO} is intact: 5 files have the right checksums" in halfbyte("verify", REPO).stdout


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_verify_names_the_file_that_changed_and_how_to_get_it_again(server: Hub, name: str) -> None:
    server.small = {"config.json"}
    folder = hub.pull(REPO)
    blob = (folder / name).resolve()
    change(blob)
    result = halfbyte("verify", REPO)
    assert result.exit_code == InvalidModelError.exit_code
    message, hint = error_lines(result)
    assert f"{folder / name} is damaged" in message
    assert hint == f"Delete {blob}, and pull the model again."
    blob.unlink()
    hub.pull(REPO)
    assert halfbyte("verify", REPO).exit_code == 0


def test_verify_reads_every_part_of_a_gguf(server: Hub, tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny-F32.gguf", split_max_tensors=4)
    parts = {part.name: part.read_bytes() for part in sorted(tmp_path.glob("tiny-F32-*.gguf"))}
    server.files[FIRST] = parts | {"other-Q8_0.gguf": b"8"}
    path = hub.pull(f"{REPO}:F32")
    assert json.loads(halfbyte("verify", f"{REPO}:F32", "--json").stdout)["files"] == len(parts)
    last = path.with_name(max(parts))
    change(last.resolve())
    result = halfbyte("verify", f"{REPO}:F32")
    assert result.exit_code == InvalidModelError.exit_code
    assert f"{last} is damaged" in error_lines(result)[0]


def test_remove_takes_what_was_never_finished(server: Hub, cache: Path) -> None:
    blobs = cache / "models--acme--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0123.incomplete").write_bytes(b"half")
    assert hub.removable(REPO).nbytes == 4
    hub.remove(hub.removable(REPO))
    assert not (cache / "models--acme--tiny").exists()


def test_a_read_only_cache_can_be_used(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.pull(REPO)

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert hub.resolve(REPO) == folder


def a_gguf(tmp_path: Path) -> bytes:
    """A small model as one GGUF file."""
    path = tmp_path / "made.gguf"
    model = tiny("llama-3.2-1b")
    write_gguf(path, model, model.spec, small_tokenizer(), kind="f16")
    return path.read_bytes()


GGUFS = {
    "tiny-Q4_K_M.gguf": b"4", "tiny-q8_0.gguf": b"8", "tiny.gguf": b"?", "mmproj-tiny-f16.gguf": b"m",
    "BF16/tiny-BF16-00001-of-00002.gguf": b"1", "BF16/tiny-BF16-00002-of-00002.gguf": b"2", "config.json": b"{}",
}  # fmt: skip
GGUFS_BF16 = [name for name in GGUFS if name.startswith("BF16")]


@pytest.mark.parametrize(
    ("choice", "files"),
    [
        ("Q4_K_M", ["tiny-Q4_K_M.gguf"]),
        ("q8_0", ["tiny-q8_0.gguf"]),
        ("tiny.gguf", ["tiny.gguf"]),
        ("bf16", ["BF16/tiny-BF16-00001-of-00002.gguf", "BF16/tiny-BF16-00002-of-00002.gguf"]),
    ],
)
def test_one_gguf_of_several_is_named_by_its_quantization(
    server: Hub, unplug: Callable[[], None], choice: str, files: list[str]
) -> None:
    server.files[FIRST] = GGUFS
    path = hub.resolve(f"{REPO}:{choice}")
    assert (path.parts[-len(Path(files[0]).parts) - 1], path.name) == (FIRST, Path(files[0]).name)
    assert server.downloads() == files
    assert hub.resolve(f"{REPO}:{choice}@main", offline=True) == path
    assert hub.resolve(REPO, offline=True) == path
    server.requests.clear()
    assert hub.resolve(f"{REPO}:{choice}@{FIRST}") == path
    assert server.requests == []
    unplug()
    assert hub.resolve(f"{REPO}:{choice}") == path


def test_ggufs_that_could_be_meant_are_listed(server: Hub) -> None:
    server.files[FIRST] = GGUFS
    with pytest.raises(ModelNotFoundError, match="acme/tiny has 4 GGUF models") as caught:
        hub.resolve(REPO)
    assert caught.value.hint == f"Name one as {REPO}:Q4_K_M; there are BF16, Q4_K_M, Q8_0, tiny.gguf."
    with pytest.raises(ModelNotFoundError, match="no one GGUF model called 'Q9'"):
        hub.resolve(f"{REPO}:Q9")
    server.files[FIRST] = {"a-Q8_0.gguf": b"", "b-Q8_0.gguf": b""}
    with pytest.raises(ModelNotFoundError, match="no one") as caught:
        hub.resolve(f"{REPO}:q8_0")
    assert "there are a-Q8_0.gguf, b-Q8_0.gguf" in caught.value.hint
    server.files[FIRST] = dict(SINGLE)
    with pytest.raises(ModelNotFoundError, match="no GGUF file"):
        hub.resolve(f"{REPO}:Q8_0")
    assert server.downloads() == []


def test_without_downloads_the_ggufs_that_are_here_are_listed(server: Hub) -> None:
    server.files[FIRST] = GGUFS
    for choice in ("Q8_0", "BF16"):
        hub.pull(f"{REPO}:{choice}")
    for model in (REPO, f"{REPO}:Q4_K_M"):
        with pytest.raises(ModelNotFoundError, match=f"{model} is none of the GGUF models") as caught:
            hub.resolve(model, offline=True)
        assert caught.value.hint == (f"Name {REPO}:BF16 or {REPO}:Q8_0, or download it with `halfbyte pull {model}`.")


def test_safetensors_come_before_a_gguf_beside_them(server: Hub) -> None:
    server.files[FIRST] = SINGLE | {"tiny-Q8_0.gguf": b"8"}
    folder = hub.resolve(REPO)
    assert contents(folder) == SINGLE
    assert hub.resolve(f"{REPO}:Q8_0").name == "tiny-Q8_0.gguf"
    assert hub.resolve(REPO, offline=True) == folder


def test_the_only_gguf_of_a_repository_needs_no_name(server: Hub, tmp_path: Path) -> None:
    data = a_gguf(tmp_path)
    server.files[FIRST] = {"README.md": b"#", "tiny-F16.gguf": data}
    path = hub.resolve(REPO)
    assert path.read_bytes() == data
    assert hub.installed() == [hub.CachedModel(f"{REPO}:F16", FIRST, path)]
    assert hub.resolve(f"{REPO}:F16") == path
    assert hub.removable(REPO).nbytes == hub.removable(f"{REPO}:F16").nbytes == len(data) + len(FIRST)


def files_in(cache: Path) -> list[str]:
    """The files of the cache by name, links among them, and of blobs what is in them."""
    paths = [path for path in (cache / "models--acme--tiny").rglob("*") if not path.is_dir()]
    return sorted(path.name if path.is_symlink() else path.read_text() for path in paths)


def test_one_gguf_of_several_is_removed_in_every_revision_and_the_others_stay(server: Hub, cache: Path) -> None:
    server.files[FIRST] = GGUFS
    server.revisions["next"] = SECOND
    server.files[SECOND] = {"tiny-Q4_K_M.gguf": b"4", "tiny-q8_0.gguf": b"88"}
    for name in (f"{REPO}:BF16", f"{REPO}:Q8_0", f"{REPO}:Q4_K_M", f"{REPO}:Q4_K_M@next", f"{REPO}:Q8_0@next"):
        hub.pull(name)
    assert "Delete acme/tiny:q8_0 (2 revisions, 3 B)?" in halfbyte("rm", f"{REPO}:q8_0", stdin="n\n").stderr
    assert f"{REPO}:q8_0 is removed: 3 B freed." in halfbyte("rm", f"{REPO}:q8_0", "--yes").stderr
    q4, bf16 = "tiny-Q4_K_M.gguf", [Path(name).name for name in GGUFS_BF16]
    assert files_in(cache) == sorted([q4, q4, *bf16, "4", "1", "2", FIRST, SECOND])
    assert [model.id for model in hub.installed()] == [f"{REPO}:BF16", f"{REPO}:Q4_K_M", f"{REPO}:Q4_K_M"]
    assert hub.resolve(f"{REPO}:Q4_K_M@next", offline=True).read_bytes() == b"4"
    assert "2 B freed" in halfbyte("rm", f"{REPO}:BF16", "--yes").stderr
    assert files_in(cache) == sorted([q4, q4, "4", FIRST, SECOND])
    assert list(cache.rglob("BF16")) == []
    assert halfbyte("rm", f"{REPO}:{q4}", "--yes").exit_code == 0
    assert not (cache / "models--acme--tiny").exists()


def test_a_file_that_another_name_stands_for_is_not_freed(server: Hub, cache: Path) -> None:
    server.files[FIRST] = {"tiny-Q4_K_M.gguf": b"same", "tiny-Q8_0.gguf": b"same"}
    for name in ("Q4_K_M", "Q8_0"):
        hub.pull(f"{REPO}:{name}")
    assert "0 B freed" in halfbyte("rm", f"{REPO}:Q4_K_M", "--yes").stderr
    assert files_in(cache) == sorted(["tiny-Q8_0.gguf", "same", FIRST])


def test_a_gguf_beside_other_weights_is_removed_alone(server: Hub) -> None:
    server.files[FIRST] = SINGLE | {"tiny-Q8_0.gguf": b"8"}
    folder = hub.pull(REPO)
    hub.pull(f"{REPO}:Q8_0")
    assert halfbyte("rm", f"{REPO}:Q8_0", "--yes").exit_code == 0
    assert contents(folder) == SINGLE


def test_a_gguf_of_which_a_part_is_missing_is_removed(server: Hub, cache: Path) -> None:
    server.files[FIRST] = GGUFS
    hub.pull(f"{REPO}:Q8_0")
    first = hub.pull(f"{REPO}:BF16")
    first.resolve().unlink()
    assert "1 B freed" in halfbyte("rm", f"{REPO}:BF16", "--yes").stderr
    assert files_in(cache) == sorted(["tiny-q8_0.gguf", "8", FIRST])


def test_what_a_broken_download_left_of_others_stays(server: Hub, cache: Path) -> None:
    server.files[FIRST] = GGUFS
    path = hub.pull(f"{REPO}:Q8_0")
    (path.resolve().parent / "0123.incomplete").write_bytes(b"half")
    assert "1 B freed" in halfbyte("rm", f"{REPO}:Q8_0", "--yes").stderr
    assert files_in(cache) == sorted(["half", FIRST])


def test_rm_of_a_gguf_that_is_not_there_names_those_that_are(server: Hub) -> None:
    server.files[FIRST] = GGUFS
    hub.pull(f"{REPO}:Q8_0")
    result = halfbyte("rm", f"{REPO}:Q4_K_M", "--yes")
    assert result.exit_code == ModelNotFoundError.exit_code
    assert error_lines(result) == [
        f"error: {REPO}:Q4_K_M is none of the GGUF models of {REPO} in the local cache.", f"Name {REPO}:Q8_0.",
    ]  # fmt: skip


def test_rm_of_one_revision_is_refused(server: Hub) -> None:
    hub.pull(REPO)
    result = halfbyte("rm", f"{REPO}@main", "--yes")
    assert result.exit_code == UsageError.exit_code
    assert error_lines(result) == [
        f"error: {REPO} can only be removed in every revision.", "Leave out @main.",
    ]  # fmt: skip
    assert hub.installed() != []


def test_a_menu_offers_the_ggufs_of_a_repository_on_a_terminal(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files[FIRST] = GGUFS
    monkeypatch.setattr("halfbyte.cli.models.on_terminal", lambda: True)
    result = halfbyte("pull", REPO, stdin="9\nQ9\n4\n")
    assert "acme/tiny has 4 GGUF models:" in result.stderr
    assert [line.split() for line in result.stderr.splitlines()[2:6]] == [
        ["1", "Q4_K_M", "1", "B"], ["2", "Q8_0", "1", "B"], ["3", "tiny.gguf", "1", "B"], ["4", "BF16", "2", "B"],
    ]  # fmt: skip
    assert "'9' is not one of them" in result.stderr
    assert "'Q9' is not one of them" in result.stderr
    assert server.downloads() == GGUFS_BF16
    assert Path(result.stdout.strip()).name == Path(GGUFS_BF16[0]).name


@pytest.mark.parametrize(("answer", "name"), [("", "tiny-Q4_K_M.gguf"), ("q8_0", "tiny-q8_0.gguf")])
def test_the_menu_prefers_q4_k_m(server: Hub, monkeypatch: pytest.MonkeyPatch, answer: str, name: str) -> None:
    server.files[FIRST] = GGUFS
    monkeypatch.setattr("halfbyte.cli.models.on_terminal", lambda: True)
    assert "[Q4_K_M]" in halfbyte("pull", REPO, stdin=f"{answer}\n").stderr
    assert server.downloads() == [name]


def test_without_a_terminal_pull_lists_the_ggufs(server: Hub) -> None:
    server.files[FIRST] = GGUFS
    result = halfbyte("pull", REPO)
    assert result.exit_code == ModelNotFoundError.exit_code
    assert "there are BF16, Q4_K_M, Q8_0, tiny.gguf" in error_lines(result)[1]
    assert server.downloads() == []


ADAPTER = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": weights("x")}


def test_an_adapter_is_its_two_files(server: Hub) -> None:
    """Downloaded once; without the network, and with its commit, from the cache."""
    server.files[FIRST] = {**ADAPTER, "README.md": b"#", "adapter_model.bin": b"pickle", "tokenizer.json": b"{}"}
    path = hub.resolve_adapter(REPO)
    assert {file.name for file in path.iterdir()} == set(ADAPTER)
    assert sorted(server.downloads()) == sorted(ADAPTER)
    asked = len(server.requests)
    assert hub.resolve_adapter(REPO, offline=True) == hub.resolve_adapter(f"{REPO}@{FIRST}") == path
    assert len(server.requests) == asked
    server.refusals["/"] = (503, "")
    assert hub.resolve_adapter(REPO) == path


def test_what_is_no_adapter_is_a_sentence(server: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"{REPO} has no adapter_config.json: it is no adapter"):
        hub.resolve_adapter(REPO)
    server.files[FIRST] = {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"}
    with pytest.raises(UnsupportedModelError, match="Pickles are never read"):
        hub.resolve_adapter(REPO)
    with pytest.raises(ModelNotFoundError, match=f"{REPO} is an adapter, not a model"):
        hub.resolve(REPO)
    with pytest.raises(DownloadError, match="is not in the local cache"):
        hub.resolve_adapter(REPO, offline=True)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        hub.resolve_adapter(str(tmp_path / "nothing"))
    assert hub.resolve_adapter(str(tmp_path)) == tmp_path

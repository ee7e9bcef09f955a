"""The files of the chat page: what is committed is what `page/` builds, and how they are to be served."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

from halfbyte.server.page import PAGE_HEADERS, page_files
from tests.conftest import ROOT

BUILT = ROOT / "src" / "halfbyte" / "server" / "page"


def test_a_rebuild_gives_the_files_that_are_committed(tmp_path: Path) -> None:
    source = tmp_path / "page"
    shutil.copytree(ROOT / "page", source, ignore=shutil.ignore_patterns("node_modules"))
    quiet = ["--no-audit", "--no-fund", "--loglevel=error", "--prefer-offline"]
    subprocess.run(["npm", "ci", *quiet], cwd=source, check=True, timeout=600)
    subprocess.run(["npm", "run", "build", "--", str(tmp_path / "out")], cwd=source, check=True, timeout=600)
    built = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    committed = {file.name: file.read_bytes() for file in BUILT.iterdir() if file.suffix not in (".py", "")}
    assert built.keys() == committed.keys()
    assert [name for name in built if built[name] != committed[name]] == []


def test_versions_are_exact() -> None:
    manifest = json.loads((ROOT / "page" / "package.json").read_text())
    versions = {**manifest["dependencies"], **manifest["devDependencies"]}
    assert [name for name, version in versions.items() if not re.fullmatch(r"\d+\.\d+\.\d+", version)] == []


def test_every_package_in_the_page_comes_with_its_licence() -> None:
    text = (BUILT / "licences.txt").read_text()
    for name, version in json.loads((ROOT / "page" / "package.json").read_text())["dependencies"].items():
        assert f"{name} {version} (" in text
    assert text.count("Permission is hereby granted") + text.count("Redistribution and use") >= 7


def test_files_are_served_with_their_type_and_etag() -> None:
    files = {file.path: file for file in page_files()}
    assert files.keys() == {"/", "/page.js", "/page.css", "/icon.svg", "/licences.txt"}
    assert files["/"].content_type == "text/html; charset=utf-8"
    assert files["/page.js"].body == (BUILT / "page.js").read_bytes()
    for file in files.values():
        assert file.etag.strip('"') == hashlib.sha256(file.body).hexdigest()[:32]
        assert file.etag[0] == file.etag[-1] == '"'


def test_nothing_in_the_page_is_of_elsewhere_or_inline() -> None:
    """So the policy needs no exception."""
    html = next(file.body.decode() for file in page_files() if file.path == "/")
    assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) == {"icon.svg", "page.css", "page.js"}
    assert not re.search(r"<style| style=| on[a-z]+=|<script[^>]*>[^<]", html)
    css = (BUILT / "page.css").read_text()
    assert not re.search(r"url\(|@import", css)
    policy = PAGE_HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy

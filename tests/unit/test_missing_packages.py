"""Where a package is not installed, one sentence says what needs it and how to get it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import pytest

import halfbyte
from halfbyte.cli import main
from halfbyte.errors import DeviceError, UsageError
from halfbyte.options import RunOptions
from halfbyte.placement import choose_device

Hide = Callable[[str], None]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Hide:
    """Makes a package one that cannot be imported."""
    return lambda package: monkeypatch.setitem(sys.modules, package, None)


def test_without_wgpu_a_gpu_is_refused(hide: Hide) -> None:
    hide("wgpu")
    with pytest.raises(DeviceError) as refused:
        halfbyte.load("pocket", device="gpu")
    assert str(refused.value) == "A GPU needs wgpu, which is not installed. Install it: pip install wgpu"


def test_without_wgpu_the_cpu_is_taken_and_says_why(hide: Hide) -> None:
    hide("wgpu")
    device, why = choose_device(RunOptions())
    assert device == "cpu"
    assert why == "A GPU needs wgpu, which is not installed. Install it: pip install wgpu"


def test_without_llguidance_a_schema_is_refused(hide: Hide) -> None:
    hide("llguidance")
    model = halfbyte.load("pocket", device="cpu")
    with pytest.raises(UsageError, match=r"llguidance, .* pip install 'halfbyte\[grammar\]'"):
        model.grammar.json_schema({"type": "integer"})


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_packages_the_server_is_refused(
    package: str, hide: Hide, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(package)
    monkeypatch.setattr(sys, "argv", ["halfbyte", "serve"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == UsageError.exit_code
    said = " ".join(capsys.readouterr().err.split())
    assert f"The server needs {package}, which is not installed." in said
    assert "pip install 'halfbyte[server]'" in said


def test_without_ray_a_cluster_is_refused(hide: Hide, monkeypatch: pytest.MonkeyPatch) -> None:
    hide("ray")
    monkeypatch.delitem(sys.modules, "halfbyte.cluster", raising=False)
    with pytest.raises(UsageError, match=r"A cluster needs ray, .* pip install 'halfbyte\[ray\]'"):
        import_module("halfbyte.cluster")

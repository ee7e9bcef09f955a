"""The public names are exactly those promised, and importing them is quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

import halfbyte


def test_every_public_name_is_there_and_documented() -> None:
    for name in halfbyte.__all__:
        assert getattr(halfbyte, name) is not None
        assert name == "__version__" or getattr(halfbyte, name).__doc__
    assert dir(halfbyte) == sorted(halfbyte.__all__)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = halfbyte.nonsense


def test_importing_halfbyte_imports_nothing_heavy() -> None:
    heavy = ("numpy", "tokenizers", "jinja2", "rich", "wgpu")
    code = f"import sys, halfbyte; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

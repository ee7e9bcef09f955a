"""The public names are exactly those promised, and importing them is quick."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import halfbyte
from halfbyte import errors

PROGRAM = """
import halfbyte
from halfbyte import Message

async def later(model: halfbyte.Model) -> None:
    reveal_type(await model.agenerate("x", seed=1))
    async for token in model.astream("x", top_p=0.9):
        reveal_type(token)

def main() -> None:
    messages: list[Message] = [{"role": "user", "content": "x"}]
    with halfbyte.load("folder", context=64, progress=True) as model:
        reveal_type(model)
        reveal_type(model.generate("x", temperature=0.7, max_tokens=5, stop=["."]))
        reveal_type(model.chat(messages, top_k=4))
        reveal_type(next(model.stream("x", min_p=0.1)))
        reveal_type(model.submit("x", system="y"))
        reveal_type(list(model.generate_many(["x"], n=2, ignore_eos=True)))
        reveal_type(model.tokenizer.decode(model.tokenizer.encode("x")))
    reveal_type(halfbyte.quantize("folder", "small", method="gptq", calibration="text").bits_per_weight)
    reveal_type(halfbyte.evaluate("small", "text", base="folder").divergence)
    reveal_type(halfbyte.bench("small", prompt_tokens=[128, 512]).figures)
    reveal_type(halfbyte.export("small", "small.gguf").path)
"""
REVEALED = [
    "Generation", "Token", "Model", "Generation", "Generation", "Token", "Stream", "list[Generation]", "str", "float",
    "Divergence | None", "list[dict[str, float | None]]", "Path",
]  # fmt: skip
WRONG = {
    'model.generate("x", temprature=0.7)': 'Unexpected keyword argument "temprature"',
    'model.stream("x", temperature="hot")': 'incompatible type "str"; expected "float"',
    'model.chat("x")': 'incompatible type "str"; expected "Sequence[Mapping[str, Any]]"',
    'model.agenerate("x", max_token=1)': 'Unexpected keyword argument "max_token"',
    'model.generate_many(["x"], max_tokens="1")': 'incompatible type "str"; expected "int"',
    "halfbyte.load(contxt=1)": 'Unexpected keyword argument "contxt"',
    'halfbyte.quantize("a", "b", method="gptk")': "incompatible type \"Literal['gptk']\"",
}
ALIASES = {"Message", "Progress", "Prompt", "__version__"}
"""What has no docstring of its own."""


def checked(program: str, folder: Path) -> list[str]:
    """What mypy says about a user's program, for whom Halfbyte is an installed package."""
    (folder / "program.py").write_text(program)
    (folder / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(halfbyte.__file__).parents[1]), "MYPYPATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "program.py"], cwd=folder, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_users_program_gets_types(tmp_path: Path) -> None:
    said = checked(PROGRAM, tmp_path)
    types = [line.split('Revealed type is "')[1].rstrip('"') for line in said if "Revealed type" in line]
    assert len(said) == len(types), said
    assert [re.sub(r"\w+\.", "", type_) for type_ in types] == REVEALED


def test_wrong_options_are_errors_for_a_type_checker(tmp_path: Path) -> None:
    calls = "".join(f"    {call}\n" for call in WRONG)
    said = checked(f"import halfbyte\n\ndef main(model: halfbyte.Model) -> None:\n{calls}", tmp_path)
    refused = [line for line in said if ": error:" in line and "unused-coroutine" not in line]
    assert len(refused) == len(WRONG), said
    for line, expected in zip(refused, WRONG.values(), strict=True):
        assert expected in line


def test_every_public_name_is_there_and_documented() -> None:
    for name in halfbyte.__all__:
        assert getattr(halfbyte, name) is not None
        assert name in ALIASES or getattr(halfbyte, name).__doc__
    assert dir(halfbyte) == sorted(halfbyte.__all__)


def test_every_error_is_public() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined <= set(halfbyte.__all__)
    assert all(getattr(halfbyte, name) is getattr(errors, name) for name in defined)


def test_functions_stay_functions_after_every_module_is_imported() -> None:
    code = (
        "import pkgutil, halfbyte, importlib\n"
        "for name in ('quantization', 'evaluation', 'report', 'tasks'):\n"
        "    package = importlib.import_module(f'halfbyte.{name}')\n"
        "    for found in pkgutil.iter_modules(package.__path__, f'{package.__name__}.'):\n"
        "        importlib.import_module(found.name)\n"
        "print(*(type(getattr(halfbyte, name)).__name__ for name in ('quantize', 'evaluate', 'bench', 'export')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["function"] * 4


def test_the_example_of_load_does_what_it_shows() -> None:
    (example,) = doctest.DocTestFinder().find(halfbyte.load, globs={"halfbyte": halfbyte})
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = halfbyte.nonsense


def test_importing_halfbyte_imports_nothing_heavy() -> None:
    heavy = ("numpy", "tokenizers", "jinja2", "rich", "wgpu")
    code = f"import sys, halfbyte; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

"""Adapters as users ask for them: by name for each answer, in chats, beside each other, with caches of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import halfbyte
from halfbyte.errors import HalfbyteError, UnsupportedModelError, UsageError
from halfbyte.model import Model
from tests.models.shell_adapters import make
from tests.unit.cli_fakes import halfbyte as command

QUESTION = f"How do I extract a tar archive? It is called {'very ' * 40}long.tar.gz."
CHOICES = (None, "one", "two")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("adapters")
    return {"one": make(base / "one", seed=1), "two": make(base / "two", seed=2, modules=("o_proj", "gate_up_proj"))}


def small(**options: Any) -> Model:
    return halfbyte.load(**{"device": "cpu", "threads": 1, "context": 256, "sequences": 3, **options})


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Iterator[Model]:
    with small(adapters=folders) as found:
        yield found


@pytest.fixture(scope="module")
def texts(folders: dict[str, Path]) -> dict[str | None, str]:
    """What each says of the question, in a model of its own."""
    found = {}
    for choice in CHOICES:
        with small(adapters=folders) as fresh:
            found[choice] = fresh.generate(QUESTION, adapter=choice, max_tokens=24).text
    return found


def test_each_says_something_else(texts: dict[str | None, str]) -> None:
    assert len(set(texts.values())) == 3
    with small() as plain:
        assert plain.generate(QUESTION, max_tokens=24).text == texts[None]


def test_one_after_another_without_the_caches_of_others(folders: dict[str, Path], texts: dict[str | None, str]) -> None:
    with small(adapters=folders) as fresh:
        for choice in CHOICES:
            first = fresh.generate(QUESTION, adapter=choice, max_tokens=24)
            assert first.text == texts[choice]
            assert first.num_cached_tokens == 0
        for choice in reversed(CHOICES):
            again = fresh.generate(QUESTION, adapter=choice, max_tokens=24)
            assert again.text == texts[choice]
            assert again.num_cached_tokens > 0


def test_all_at_once(model: Model, texts: dict[str | None, str]) -> None:
    streams = {choice: model.submit(QUESTION, adapter=choice, max_tokens=24, cache_prompt=False) for choice in CHOICES}
    for choice, stream in streams.items():
        assert stream.whole().text == texts[choice]


def test_a_second_turn_with_the_other_adapter(folders: dict[str, Path]) -> None:
    """As in a model that never saw the first turn."""
    model = small(adapters=folders)
    messages = [{"role": "user", "content": f"First list its files. {QUESTION}"}]
    messages.append({"role": "assistant", "content": model.chat(messages, adapter="one", max_tokens=12).text})
    messages.append({"role": "user", "content": "And hidden ones?"})
    second = model.chat(messages, adapter="two", max_tokens=12)
    assert second.num_cached_tokens == 0
    assert model.chat(messages, adapter="one", max_tokens=12).num_cached_tokens > 32
    with small(adapters=folders) as fresh:
        assert second.text == fresh.chat(messages, adapter="two", max_tokens=12).text


def test_a_model_with_an_adapter_of_its_own(model: Model, texts: dict[str | None, str]) -> None:
    one = model.with_adapter("one")
    assert (one.adapter, model.adapter, one.adapters) == ("one", None, ("one", "two"))
    assert one.generate(QUESTION, max_tokens=24).text == texts["one"]
    assert one.generate(QUESTION, max_tokens=24, adapter="two").text == texts["two"]
    assert one.generate(QUESTION, max_tokens=24, adapter="").text == texts[None]
    assert [g.text for g in one.generate_many([QUESTION, QUESTION], max_tokens=24)] == [texts["one"]] * 2


def test_embeddings_come_with_the_adapter(model: Model) -> None:
    plain, one = model.embed("some text"), model.with_adapter("one").embed("some text")
    assert np.abs(plain - one).max() > 1e-3
    assert np.abs(plain - model.embed("some text")).max() < 1e-6


def test_an_unknown_adapter_is_refused(model: Model) -> None:
    with pytest.raises(UsageError, match=r"there is no adapter 'three'\. There are one, two"):
        model.generate(QUESTION, adapter="three")
    with small() as plain, pytest.raises(UsageError, match=r"there is no adapter 'one'\. Load the model with"):
        plain.generate(QUESTION, adapter="one")


def test_saved_prompts_go_with_their_adapter(model: Model, folders: dict[str, Path], tmp_path: Path) -> None:
    ids = list(range(40, 150))
    expected = model.generate(ids, adapter="one", max_tokens=8)
    model.with_adapter("one").save_cache(tmp_path / "prompt", ids)
    with small(adapters={"other": folders["one"], "two": folders["two"]}) as fresh:
        for other in (fresh, fresh.with_adapter("two")):
            with pytest.raises(UsageError, match="was made with other adapters"):
                other.load_cache(tmp_path / "prompt")
        fresh.with_adapter("other").load_cache(tmp_path / "prompt")
        assert fresh.generate(ids, max_tokens=8).num_cached_tokens == 0
        got = fresh.generate(ids, adapter="other", max_tokens=8)
        assert got.num_cached_tokens >= 96
        assert got.token_ids == expected.token_ids


def test_merged_into_packed_weights_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"cannot be merged into .+, which is packed"):
        small(merge=folders["one"])


def test_merged_and_beside_say_the_same(shell_29m: Path, folders: dict[str, Path]) -> None:
    exact: dict[str, Any] = {"activations": "f32", "kv_dtype": "f32", "weights": "f32"}
    with small(model=shell_29m, merge=folders["one"], **exact) as merged:
        expected = merged.generate(QUESTION, max_tokens=24, logprobs=1)
    with small(model=shell_29m, adapters=folders, **exact) as beside:
        got = beside.generate(QUESTION, adapter="one", max_tokens=24, logprobs=1)
        assert got.text == expected.text
        assert np.abs(np.subtract(got.logprobs, expected.logprobs)).max() < 1e-3
        assert beside.generate(QUESTION, max_tokens=24).text != expected.text


def test_names_and_paths_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an adapter cannot be called 'a b'"):
        small(adapters={"a b": tmp_path})
    with pytest.raises(UsageError, match="adapters must be paths by name"):
        small(adapters=["a"])
    with pytest.raises(HalfbyteError, match="does not exist"):
        small(adapters={"a": tmp_path / "nothing"})
    with pytest.raises(UsageError, match="Did you mean merge"):
        small(lora=tmp_path)


def test_an_adapter_is_no_model(folders: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedModelError, match="is an adapter, not a model"):
        small(model=folders["one"])
    assert command("run", "-m", str(folders["one"]), "hello").exit_code == UnsupportedModelError.exit_code
    shown = command("models", "show", str(folders["one"]))
    assert shown.exit_code == 0, shown.output
    assert "LoRA adapter of rank 4" in shown.output
    assert "down_proj, qkv_proj" in shown.output
    assert json.loads(command("models", "show", "--json", str(folders["one"])).output)["base"] == "shell-29m"
    verified = command("models", "verify", str(folders["one"]))
    assert verified.exit_code == 0
    assert "no checksums to compare with" in verified.output


def test_commands_answer_with_an_adapter(
    folders: dict[str, Path], texts: dict[str | None, str], tmp_path: Path
) -> None:
    given = [f"--adapter={name}={path}" for name, path in folders.items()]
    how = ["--device", "cpu", "--threads", "1", "--context", "256", "-n", "24"]
    one = command("run", *how, *given, QUESTION)
    assert one.stdout.strip() == (texts["one"] or "").strip()
    lines = [{"prompt": QUESTION, "adapter": name} for name in ("two", "", "one")] + [{"prompt": QUESTION}]
    (tmp_path / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = command("run", *how, *given, "--prompts", str(tmp_path / "lines"), "--json")
    found = [json.loads(line)["text"] for line in batch.stdout.splitlines()]
    assert found == [texts["two"], texts[None], texts["one"], texts["one"]]
    talk = f"{QUESTION}\n/set adapter two\n/reset\n{QUESTION}\n/set adapter none\n/reset\n{QUESTION}\n"
    chat = command("chat", *how, "--plain", *given, stdin=talk)
    for choice in CHOICES:
        assert (texts[choice] or "").strip() in chat.output


def test_perplexity_of_an_adapter(folders: dict[str, Path], shared: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text((shared / "data" / "books-dev.txt").read_text(encoding="utf-8")[:1500])
    how = ["eval", "perplexity", "--text", str(text), "--device", "cpu", "--json", "--window", "64"]
    plain, one = (json.loads(command(*how, *more).stdout) for more in ([], [f"--adapter=one={folders['one']}"]))
    assert plain["ppl"] != one["ppl"]

"""Tokenizer files are read with suspicion; what they say is what the tokenizer does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import HalfbyteError, InvalidModelError, ModelNotFoundError, TemplateError, UsageError
from halfbyte.text import Tokenizer, files
from tests.unit.vocab import bos_post_processor, small_byte_level_definition, small_spm_definition, write_folder

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path, small_spm_definition(), bos_token="<s>", eos_token={"content": "</s>"})


def set_config(folder: Path, **config: object) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def test_names_its_special_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id) == ("<s>", "</s>", 2)
    assert tokenizer.special_ids == {1, 2, 3, 4}
    assert tokenizer.token_id("<|end|>") == 4
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.token(4) == "<|end|>"
    assert tokenizer.decode([3, 4], skip_special_tokens=False) == "<|user|><|end|>"
    assert tokenizer.decode([3, 4]) == ""


def test_works_with_tokenizer_json_alone(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    tokenizer = Tokenizer.from_folder(str(folder))
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.eos_token_id) == (None, None, None)
    assert not tokenizer.has_chat_template


def test_a_named_token_of_the_vocabulary_becomes_special(folder: Path) -> None:
    tokenizer = set_config(folder, eos_token="hello")
    assert tokenizer.eos_token_id in tokenizer.special_ids
    assert tokenizer.vocab_size == len(small_spm_definition()["model"]["vocab"])


def test_special_tokens_map_counts_only_beside_an_old_config(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}, "additional": 3}')
    assert set_config(folder, eos_token="</s>").eos_token == "<|end|>"
    assert set_config(folder, eos_token="</s>", added_tokens_decoder={}).eos_token == "</s>"


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    definition = small_byte_level_definition()
    direction = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None}
    definition["truncation"] = direction
    definition["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, definition))
    assert tokenizer.decode(tokenizer.encode("hello, the whole wide world"), skip_special_tokens=False) == (
        "hello, the whole wide world"
    )


@pytest.mark.parametrize("ids", [[5, -1], [10**6], [2**32], [2**70]])
def test_ids_outside_the_vocabulary_are_refused(folder: Path, ids: list[int]) -> None:
    with pytest.raises(UsageError, match=f"Token id {ids[-1]} is outside"):
        Tokenizer.from_folder(folder).decode(ids)


def test_text_that_is_no_unicode_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="character 3 is a lone surrogate"):
        Tokenizer.from_folder(folder).encode("abc\udc80")


# --- chat templates


def test_chat_template_files_come_before_the_config(folder: Path) -> None:
    tokenizer = set_config(folder, chat_template="config {{ messages[0].content }}", bos_token="<s>")
    assert tokenizer.render_chat(HELLO) == "config Hello"
    (folder / "chat_template.json").write_text('{"chat_template": "json {{ messages[0].content }}"}')
    assert Tokenizer.from_folder(folder).render_chat(HELLO) == "json Hello"
    (folder / "chat_template.jinja").write_text("jinja {{ messages[0].content }} {{ bos_token }}")
    assert Tokenizer.from_folder(folder).render_chat(HELLO) == "jinja Hello <s>"


def test_of_several_templates_tools_choose_the_one_for_tools(folder: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    tokenizer = set_config(folder, chat_template=templates)
    assert tokenizer.render_chat(HELLO) == "plain"
    assert tokenizer.render_chat(HELLO, tools=[{"name": "f"}]) == "tools"
    assert (tokenizer.chat_template(), tokenizer.chat_template(tools=True)) == ("plain", "tools")
    only_tools = set_config(folder, chat_template=templates[:1])
    assert not only_tools.has_chat_template
    assert only_tools.render_chat(HELLO, tools=[]) == "tools"
    assert (only_tools.chat_template(), only_tools.chat_template(tools=True)) == (None, "tools")
    with pytest.raises(TemplateError, match="no chat template but tool_use"):
        only_tools.render_chat(HELLO)


@pytest.mark.parametrize("default", ["chat_template.jinja", "additional_chat_templates/default.jinja"])
@pytest.mark.parametrize("tools", [None, [], [{"name": "f"}]])
def test_template_files_are_chosen_as_transformers_chooses(tmp_path: Path, default: str, tools: Any) -> None:
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "config"}
    folder = write_folder(tmp_path, small_byte_level_definition(), **config)
    (folder / "additional_chat_templates").mkdir()
    (folder / default).write_text("D{{ messages[0].content }}")
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T{{ tools }}")
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(HELLO, tools=tools, tokenize=False)
    assert Tokenizer.from_folder(folder).render_chat(HELLO, tools=tools) == theirs


def test_a_chat_gets_no_second_bos(tmp_path: Path) -> None:
    definition = small_spm_definition()
    definition["post_processor"] = bos_post_processor("<s>", 1)
    source = "{{ bos_token }}{{ messages[0].content }}{% if add_generation_prompt %}<|end|>{% endif %}{{ tools }}"
    folder = write_folder(tmp_path, definition, bos_token="<s>", chat_template=source)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("hello")[0] == 1
    assert tokenizer.encode_chat([{"role": "user", "content": ""}], add_generation_prompt=False)[:1] == [1]
    assert tokenizer.encode_chat(HELLO).count(1) == 1
    assert tokenizer.render_chat(HELLO, tools=[{"name": "f"}]).endswith("[{'name': 'f'}]")


def test_without_a_template_a_chat_is_refused(folder: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        Tokenizer.from_folder(folder).encode_chat(HELLO)


def test_a_broken_template_is_no_obstacle_to_plain_text(folder: Path) -> None:
    tokenizer = set_config(folder, chat_template="{% if %}")
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(TemplateError, match="not valid"):
        tokenizer.render_chat(HELLO)


# --- bad files


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        Tokenizer.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("present", "words"),
    [((), "Copy it"), (("tokenizer.model",), "tokenizer.model alone"), (("vocab.json",), "vocab.json alone")],
)
def test_a_missing_tokenizer_json_is_named_with_a_remedy(tmp_path: Path, present: tuple[str, ...], words: str) -> None:
    for name in present:
        (tmp_path / name).write_bytes(b"\x0a\x0b")
    with pytest.raises(InvalidModelError, match=r"has no tokenizer\.json") as caught:
        Tokenizer.from_folder(tmp_path)
    assert words in caught.value.hint


BAD_JSON = [b"", b"{", b"[]", b"3", b'"x"', b"null", b"\xff\xfe\x00", b"[" * 10**5, b'{"a":' * 10**5]


def test_a_vocabulary_that_cannot_write_a_text_is_named(tmp_path: Path) -> None:
    definition = small_spm_definition()
    definition["model"] |= {"byte_fallback": False, "unk_token": "nowhere"}
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, definition))
    with pytest.raises(InvalidModelError, match=r"tokenizer\.json is damaged: .*nowhere"):
        tokenizer.encode("中")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", BAD_JSON, ids=range(len(BAD_JSON)))
def test_damaged_files_are_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(InvalidModelError, match=name) as caught:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": 3},
        {"eos_token": ["</s>"]},
        {"eos_token": {"content": 3}},
        {"eos_token": {}},
        {"chat_template": 3},
        {"chat_template": {"default": "x"}},
        {"chat_template": [{"name": "default", "template": 3}]},
        {"chat_template": "x" * (2**20 + 1)},
        {"chat_template": "\ud800"},
        {"bos_token": "\ud800"},
        {"eos_token": {"content": "\udfff"}},
        {"additional_special_tokens": ["\ud800"]},
        {"additional_special_tokens": 3},
        {"extra_special_tokens": {"x": 3}},
        {"added_tokens_decoder": 3},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"3": {"content": "a", "special": 3}}},
        {"added_tokens_decoder": {"3": {"content": "\ud800"}}},
    ],
)
def test_values_of_the_wrong_type_are_refused(folder: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidModelError, match=r"tokenizer_config\.json is damaged"):
        set_config(folder, **config)


def test_a_template_file_must_be_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    with pytest.raises(InvalidModelError, match=r"chat_template\.jinja is damaged: byte 4 is not UTF-8"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_what_is_no_regular_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(InvalidModelError, match="not a regular file"):
        Tokenizer.from_folder(folder)


def test_huge_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_DEFINITION_BYTES", 2**20)
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(InvalidModelError, match="larger than 1 MiB"):
        Tokenizer.from_folder(folder)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = st.sampled_from(
    ["bos_token", "eos_token", "pad_token", "chat_template", "content", "added_tokens_decoder", "add_bos_token"]
)


@settings(max_examples=150, deadline=None)
@given(config=JSON_VALUES | st.dictionaries(CONFIG_KEYS, JSON_VALUES | st.dictionaries(CONFIG_KEYS, JSON_VALUES)))
def test_any_config_loads_or_ends_in_one_line(tmp_path_factory: pytest.TempPathFactory, config: object) -> None:
    folder = write_folder(tmp_path_factory.getbasetemp() / "config", small_spm_definition())
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "\n" not in message_of_use(folder)


SMALL = json.dumps(
    {**small_spm_definition(), "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
).encode()


@settings(max_examples=300, deadline=None)
@given(
    place=st.integers(0, len(SMALL)),
    length=st.integers(0, 12),
    patch=st.binary(max_size=6) | st.sampled_from([b"null", b"-1", b"[]", b"{}", b'""', b"4294967296", b"1e999"]),
)
def test_any_damage_to_tokenizer_json_loads_or_ends_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, place: int, length: int, patch: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damage"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(SMALL[:place] + patch + SMALL[place + length :])
    assert "\n" not in message_of_use(folder)


def message_of_use(folder: Path) -> str:
    """What a user is told when they use this folder for everything; "" if all goes well."""
    try:
        tokenizer = Tokenizer.from_folder(folder)
        tokenizer.decode(tokenizer.encode("ab <|user|> é"))
        return tokenizer.render_chat(HELLO)[:0] if tokenizer.has_chat_template else ""
    except HalfbyteError as error:
        return str(error)


def test_importing_the_package_loads_no_library_for_text() -> None:
    code = "import sys, halfbyte.text; print(sorted({'tokenizers', 'jinja2', 'transformers'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_end_token_that_only_the_tokenizers_configuration_names_ends_an_answer(folder: Path) -> None:
    tokenizer = set_config(folder, eos_token="<new>")
    assert tokenizer.with_eos([7]) == (7, tokenizer.token_id("<new>"))
    assert set_config(folder, eos_token="</s>").with_eos([2, 7]) == (2, 7)
    assert set_config(folder).with_eos([7]) == (7,)

"""Chat templates render as transformers renders them, and hostile ones end in one clear line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import TemplateError, UsageError
from halfbyte.text import template as template_module
from halfbyte.text.template import ChatTemplate
from tests.unit.vocab import small_byte_level_definition, write_folder

TEMPLATES = sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

HELLO = [{"role": "user", "content": " Hello, <b>\"wörld\"</b> & 'all'! "}]
TURNS = [*HELLO, {"role": "assistant", "content": "Hi.\n"}, {"role": "user", "content": "{{ bye }}\n\n🦙"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *TURNS]
TWO_USERS = [*HELLO, *HELLO]
TOOL_CALL = [
    *HELLO,
    {
        "role": "assistant",
        "tool_calls": [{"id": "abcdef123", "function": {"name": "add", "arguments": {"a": 1, "b": "ü<"}}}],
    },
    {"role": "tool", "content": "3", "tool_call_id": "abcdef123"},
]
ODD = [{"role": "wizard", "content": "Abracadabra"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
    folder = write_folder(tmp_path_factory.mktemp("tokenizer"), small_byte_level_definition(), **config)
    return AutoTokenizer.from_pretrained(folder)


def outcome_of_transformers(tokenizer: Any, source: str, messages: Any, **options: Any) -> str:
    try:
        return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    except jinja2.exceptions.TemplateError as error:
        return f"refused: {error}"


def outcome(source: str, messages: Any, **options: Any) -> str:
    try:
        return ChatTemplate(source, SPECIAL).render(messages, **options)
    except TemplateError as error:
        return "refused: " + error.message.split(": ", 1)[1]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "messages",
    [HELLO, TURNS, SYSTEM, TWO_USERS, TOOL_CALL, ODD],
    ids=["hello", "turns", "system", "two users", "tool call", "odd role"],
)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_or_refuses_as_transformers_does(
    transformers_tokenizer: Any, path: Path, messages: Any, tools: Any, add_generation_prompt: bool
) -> None:
    source = path.read_text(encoding="utf-8")
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    expected = outcome_of_transformers(transformers_tokenizer, source, messages, **options)
    assert outcome(source, messages, **options) == expected


@settings(max_examples=60, deadline=None)
@given(
    path=st.sampled_from(TEMPLATES),
    messages=st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}),
        min_size=1,
        max_size=5,
    ),
)
def test_any_conversation_renders_as_transformers_does(transformers_tokenizer: Any, path: Path, messages: Any) -> None:
    source = path.read_text(encoding="utf-8")
    assert outcome(source, messages) == outcome_of_transformers(
        transformers_tokenizer, source, messages, add_generation_prompt=True
    )


def test_a_refusal_carries_the_templates_own_words() -> None:
    source = (Path(__file__).parent / "chat_templates" / "gemma-2.jinja").read_text(encoding="utf-8")
    with pytest.raises(TemplateError, match="refused the conversation: System role not supported") as caught:
        ChatTemplate(source, SPECIAL).render(SYSTEM)
    assert caught.value.hint
    with pytest.raises(TemplateError, match="Conversation roles must alternate user/assistant"):
        ChatTemplate(source, SPECIAL).render(TWO_USERS)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__['json'].codecs.open('/etc/passwd').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''['__cl' ~ 'ass__'].mro() }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
        "{% set ns = namespace() %}{% set ns.__call__ = raise_exception %}",
        "{{ namespace(__html__=1) }}",
        "{{ messages.append(1) }}",
        "{% do messages.clear() %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends 'base' %}",
    ],
)
def test_escapes_from_the_sandbox_fail(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, SPECIAL).render(HELLO)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ range(10 ** 9) }}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** 9 * 'x' }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 9 ** 999999999 }}",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ lipsum(n=10 ** 9) }}",
        "{{ 'x' | center(10 ** 9) }}",
        "{{ messages | batch(10 ** 9, 1) | list | length }}",
    ],
)
def test_templates_without_end_are_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "TIME_LIMIT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, SPECIAL).render(HELLO)
    assert time.monotonic() - start < 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if %}", "not valid"),
        ("{{ messages", "not valid"),
        ("{% for %}{% endfor %}", "not valid"),
        ("{{ x | nosuchfilter }}", "nosuchfilter"),
        ("{{ messages[0].nothing.more }}", "nothing"),
        ("{{ messages[0]['content'] + 1 }}", "failed"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ nothing | tojson }}", "Undefined"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "not valid"),
        ("{% for i in messages %}" * 60 + "{% endfor %}" * 60, "not valid"),
    ],
)
def test_mistakes_in_a_template_are_told_in_one_line(source: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source, SPECIAL).render(HELLO)
    assert words in caught.value.message
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "{{", "}}", "{%", "%}", "{#", "#}", "-", " ", "for m in messages", "endfor", "if", "endif", "set x =",
                "messages", "[0]", "['content']", ".role", "|", "trim", "tojson", "macro f(x)", "endmacro", "f(1)",
                "raise_exception('no')", "namespace()", "generation", "endgeneration", "~", "*", "**", "9", "'a'", "(",
                ")", "loop.index", "break", "is string", "__class__", "\n", "{{ messages }}", "{% for m in messages %}",
            ]
        ),
        max_size=12,
    ).map(" ".join)
)  # fmt: skip
def test_any_template_renders_or_ends_in_a_template_error(source: str) -> None:
    text = outcome(source, HELLO)
    assert "\n" not in text or not text.startswith("refused: ")


@pytest.mark.parametrize("messages", [[], "Hello", None, [1], ["Hello"], [{}], [{"content": "x"}], [{"role": 3}], {}])
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(UsageError):
        ChatTemplate("{{ messages }}", SPECIAL).render(messages)


def test_templates_see_plain_data_only() -> None:
    messages = [{"role": "user", "content": Path("/etc/passwd")}]
    with pytest.raises(UsageError, match="Path"):
        ChatTemplate("{{ messages[0].content.read_text() }}", SPECIAL).render(messages)


def test_a_template_cannot_change_the_callers_messages() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    source = "{% for m in messages %}{% set x = m.update({'role': 'x'}) %}{% endfor %}"
    with pytest.raises(TemplateError):
        ChatTemplate(source, SPECIAL).render(messages)
    assert messages == [{"role": "user", "content": ["a"]}]

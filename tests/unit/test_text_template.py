"""Chat templates render as transformers renders them, and hostile ones end in one clear line."""

from __future__ import annotations

import json
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
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
NULL = [
    *HELLO,
    {"role": "assistant", "content": None, "refusal": None, "tool_calls": TOOL_CALL[1]["tool_calls"]},
    *TOOL_CALL[2:],
]
THOUGHTS = [*HELLO, {"role": "assistant", "content": "Yes.", "reasoning": "Hm."}, *HELLO]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]}]
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
    [HELLO, TURNS, SYSTEM, TWO_USERS, TOOL_CALL, NULL, THOUGHTS, ODD],
    ids=["hello", "turns", "system", "two users", "tool call", "null content", "thoughts", "odd role"],
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


PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
READS_PARTS = """{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content %}<{{ part.text | trim }}>{% endfor %}{% endif %}{% endfor %}"""


def test_a_message_without_content_has_none_in_the_prompt() -> None:
    assert outcome(PLAIN, NULL[:2]) == f"[user]{HELLO[0]['content']}[assistant]"
    assert (
        outcome("{{ messages[0].content is defined }}{{ messages[0].name }}", [{"role": "x", "name": None}]) == "False"
    )


def test_parts_are_handed_to_templates_that_read_them(transformers_tokenizer: Any) -> None:
    assert outcome(READS_PARTS, PARTS) == "[user]<Hello><you>"
    assert outcome(READS_PARTS, PARTS) == outcome_of_transformers(transformers_tokenizer, READS_PARTS, PARTS)


@pytest.mark.parametrize(
    "source",
    [
        PLAIN,
        "{% for m in messages %}[{{ m.role }}]{{ m.content.strip() }}{% endfor %}",
        "[user]{{ messages[0]['content'] + '' }}",
    ],
)
def test_parts_become_lines_for_templates_that_take_text(source: str) -> None:
    assert outcome(source, PARTS) == "[user]Hello\nyou"
    assert (
        outcome(source, [{"role": "user", "content": ["Hello", {"type": "text", "text": "you"}]}]) == "[user]Hello\nyou"
    )


def test_parts_that_are_no_text_are_refused_where_no_template_reads_them() -> None:
    with pytest.raises(UsageError, match="'image_url'"):
        ChatTemplate(PLAIN, SPECIAL).render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


def with_text_arguments(messages: Any) -> Any:
    """Calls as clients send them: arguments as JSON text."""
    changed = json.loads(json.dumps(messages))
    for message in changed:
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return changed


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_arguments_as_text_render_as_the_object_they_hold(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert outcome(source, with_text_arguments(TOOL_CALL), tools=TOOLS) == outcome(source, TOOL_CALL, tools=TOOLS)


ONE_CALL = "{% for m in messages %}{% for c in m.tool_calls %}{{ EXPR }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("expression", "arguments", "text"),
    [
        ("c.function.arguments | tojson", '{"a": 1, "b": "ü<"}', '{"a": 1, "b": "ü<"}'),
        ("c.function.arguments.items() | list", '{"a": [1]}', "[('a', [1])]"),
        ("c.function.arguments", "{not JSON", "{not JSON"),
        ("c.function.arguments", "[1]", "[1]"),
        ("c.function.arguments", '"a"', '"a"'),
        ("c.function.arguments | length", "", "0"),
        ("'call ' + c.function.arguments", '{"a": 1}', 'call {"a": 1}'),
        ("'call ' + c.function.arguments", {"a": "ü"}, 'call {"a": "ü"}'),
        ("c.name", '{"a": 1}', ""),
    ],
)
def test_arguments_come_as_the_template_takes_them(expression: str, arguments: Any, text: str) -> None:
    call = {"id": "x", "function": {"name": "add", "arguments": arguments}}
    messages = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert outcome(ONE_CALL.replace("EXPR", expression), messages) == text


@pytest.mark.parametrize("calls", ["x", [1], [{"function": "x"}], [{"function": {}}], {}, [[]]])
def test_calls_that_are_none_do_no_harm(calls: Any) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hi", "tool_calls": calls}]
    assert outcome("{{ messages[1].content }}", messages) == "Hi"


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


DEEP = "{% set ns = namespace(a=['x'], b=['x'], t=('x',)) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}\
{% set ns.b = [ns.b, ns.b] %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"
"""Lists of lists, small to build and endless to walk through."""

BIG = "{% set big = 'x' * 4000000 %}"
ROWS = "{% for i in range(99999) %}" + "y" * 50000 + "{% endfor %}"
DOUBLED = "{% set ns = namespace(x='xy') %}{% for i in range(60) %}{% set ns.x = EXPR %}{% endfor %}"
KEPT = BIG + "{% set ns = namespace(k=[]) %}{% for i in range(999) %}{% set ns.k = ns.k + [EXPR] %}{% endfor %}"

HUNGRY = [
    *(
        DEEP + "{{ EXPR }}".replace("EXPR", expression)
        for expression in (
            "ns.a == ns.b", "ns.a < ns.b", "ns.a in [ns.b]", "[ns.a, ns.b] | sort", "[ns.a, ns.b] | max", "ns.a",
            "ns.a ~ ''", "ns.a | string", "ns.a | tojson", "ns.a | join", "ns.a | upper", "ns.a is eq(ns.b)",
            "[ns.a].index(ns.b)", "[ns.a] | select('==', ns.b) | list", "{'a': ns.a}.values() | list | sort",
            "'%s' % ns.a", "'{}'.format(ns.a)", "'{0!r}'.format(ns.a)", "raise_exception(ns.a)", "{ns.t: 1}",
            "ns.t in {}",
            "{}[ns.t]", "{}.get(ns.t)", "dict([(ns.t, 1)])", "[ns.t, ns.t] | unique | list", "ns", "','.join(ns.a)",
            "ns.b in (range(9) | map('default', ns.a))", "[1, 2] | groupby('x', default=ns.a)", "ns.a is lower",
            "ns.a | indent", "ns.a | int", "[{'x': ns.a}] | sum(attribute='x', start=[])",
        )
    ),
    DEEP + "{% for x in [ns.a, ns.b] %}{{ loop.changed(x) }}{% endfor %}",
    *(
        "{{ EXPR }}".replace("EXPR", expression)
        for expression in (
            "('x ' * 400000) | wordwrap(1)", "1.5 | round(-1500000000)", "5 | round(1500000000, 'floor')",
            "'%1500000000s' % 'a'", "'%*s' % (1500000000, 'a')", "'%.1500000000f' % 1",
            "'%(a(b)c)1500000000s' % {'a(b)c': 1}",
            "'%1500000000d' | format(3)", "'{:1500000000}'.format('a')", "'{:{}}'.format('a', 1500000000)",
            "'{a:1500000000}'.format_map({'a': 1})", "'1'.zfill(1500000000)", "'1'.ljust(1500000000)",
            "'\t'.expandtabs(1500000000)", "'a\nb' | indent(1500000000)", "('a' * 100000).replace('', 'b' * 100000)",
            "('a' * 100000) | replace('a', 'b' * 100000)", "range(99999) | join('b' * 100000)",
            "('b' * 100000).join(['a'] * 99999)", "[1] | batch(1500000000, 'x') | list",
            "[1] | slice(1500000000) | list",
            "'a'.translate({97: 'b' * 4000000})", "[[[1]]] | tojson(indent=1500000000)", "9 ** 9 ** 9 ** 9 ** 9",
            "2 ** (2 ** 60)",
            "('9' * 4000) | int * ('9' * 4000) | int", "('f' * 4000000) | int(0, 16)", "('9' * 4000000) | float",
            "([[1]] * 100000) | sum(start=[]) | length", "('<a' * 2000000) | striptags", "('a.' * 2000000) | urlize",
            "('<' | e) * 4000000", "('%s' | safe) % ('<' * 4000000)", "('{}' | safe).format('<' * 4000000)",
        )
    ),
    *(
        DOUBLED.replace("EXPR", expression)
        for expression in (
            "ns.x * 100", "'%s%s' % (ns.x, ns.x)", "'{0}{0}'.format(ns.x)", "[ns.x, ns.x] | join",
            "ns.x.replace('x', ns.x)",
            "ns.x | list + ns.x | list", "ns.x | tojson | tojson",
        )
    ),
    "{% macro m() %}" + ROWS + "{% endmacro %}{{ m() }}",
    "{% set x %}" + ROWS + "{% endset %}",
    "{% filter upper %}" + ROWS + "{% endfilter %}",
    ROWS,
    KEPT.replace("EXPR", "big[1:]"),
    KEPT.replace("EXPR", "big.split('q', 1)"),
    KEPT.replace("EXPR", "big ~ i"),
    "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    BIG + "{% for i in range(99999) %}{% for j in big if false %}{% endfor %}{% endfor %}",
    "{{ " + "+".join(["1"] * 9000) + " }}",
    "".join(f"{{%set a{i}=1%}}" for i in range(2000)) + "{%if a1%}{%endif%}" * 1500,
    "x" * 70000,
]  # fmt: skip


@pytest.mark.parametrize("source", HUNGRY, ids=range(len(HUNGRY)))
def test_no_operation_takes_much_time_or_memory(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "TIME_LIMIT_S", 0.5)
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(TemplateError) as caught:
            ChatTemplate(source, SPECIAL).render(HELLO)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 15  # most of it is the watching of memory; unbounded, any of these takes minutes
    assert peak < 400 * 2**20
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("messages | map(attribute='role') | list", "['user']"), ("'user' in messages | map(attribute='role')", "True"),
        ("(messages | selectattr('role', '==', 'tool')) is true or 1", "1"),
        ("messages | selectattr('role') and 'yes'", "yes"),
        ("'%s-%03d' % ('a', 7)", "a-007"), ("'{:>5}|{!r}'.format('a', 'b')", "    a|'b'"),
        ("[3, 1, 2] | sort | join(',')", "1,2,3"),
        ("'a b  c'.split() | length", "3"), ("{'b': 1, 'a': 2} | dictsort | first | first", "a"),
        ("[1, 2, 3][::-1]", "[3, 2, 1]"),
        ("'x' ~ 1 ~ none", "x1None"), ("2 ** 10 - 7 // 2", "1021"), ("'ab' | center(6) | replace(' ', '.')", "..ab.."),
        ("range(5) | batch(2, 'x') | list | tojson", '[[0, 1], [2, 3], [4, "x"]]'), ("{'a': 1}.items() | list",
        "[('a', 1)]"),
        ("1 < 2 < 3", "True"), ("'abc'[1:]", "bc"), ("[1, 2, 3] | sum", "6"), ("'a' if 'A'.lower() == 'a' else 'b'",
        "a"),
        ("'<' | e", "&lt;"), ("'Hello you' | truncate(length=6, leeway=0)", "Hel..."),
        ("'a\nb' | indent(width=2, first=true)", "  a\n  b"),
    ],
)  # fmt: skip
def test_what_templates_commonly_do_gives_what_it_gives_in_transformers(
    transformers_tokenizer: Any, expression: str, text: str
) -> None:
    source = "{{ " + expression + " }}"
    assert outcome(source, HELLO) == text
    assert outcome_of_transformers(transformers_tokenizer, source, HELLO) == text


def test_compiling_computes_nothing() -> None:
    """Jinja2 would work out constant expressions while it compiles, before any limit holds."""
    start = time.monotonic()
    ChatTemplate("{{ 'x' * 10 ** 9 }}{{ 5 | round(-1500000000) }}{{ ('a' * 10 ** 8) | upper }}", SPECIAL)
    assert time.monotonic() - start < 2


def test_templates_run_in_many_threads_at_once() -> None:
    template = ChatTemplate(PLAIN, SPECIAL)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda i: template.render([{"role": "user", "content": str(i)}]), range(200)))
    assert texts == [f"[user]{i}" for i in range(200)]


def test_a_long_conversation_is_rendered() -> None:
    turns = [{"role": role, "content": f"{i} " * 2000} for i in range(200) for role in ("user", "assistant")]
    source = (Path(__file__).parent / "chat_templates" / "gemma-3.jinja").read_text(encoding="utf-8")
    assert len(outcome(source, turns)) > 2_000_000


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

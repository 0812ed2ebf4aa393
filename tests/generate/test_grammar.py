"""Grammars: answers that hold to them, how they end, batch mates without one, and what is refused."""

import re
import sys

import numpy as np
import pytest

from multipatch_jax.generate.grammar import Grammars, Matcher
from tests.helpers.generators import make_generator
from tests.helpers.schemas import assert_valid, random_schema

CHATS = ["a", "What is it?", "JSON: "]
EOS = (2, 49279)  # of the processor's special tokens
# Not \d: it is any digit of Unicode, and which there are depends on the version of Python.
DATE = re.compile(r"(19|20)[0-9][0-9]-[01][0-9]-[0-3][0-9]")
LARK = """start: "SELECT " NAME (", " NAME){0,2} " FROM " NAME (" WHERE " NAME " = " (NUMBER | TEXT))?
NAME: /[a-z]{1,6}/
NUMBER: /[0-9]{1,3}/
TEXT: "'" /[^'\\x00-\\x1f]{0,4}/ "'"
"""
LARK_AS_REGEX = (
    r"SELECT [a-z]{1,6}(, [a-z]{1,6}){0,2} FROM [a-z]{1,6}( WHERE [a-z]{1,6} = ([0-9]{1,3}|'[^'\x00-\x1f]{0,4}'))?"
)
DEAD_END = 'start: ("a" | "b") NONE\nNONE: /[0-9]/ & /[a-z]/'


@pytest.fixture(scope="module")
def generator(talker):
    return make_generator(talker, eos_ids=EOS)


def allowed_ids(matcher: Matcher) -> list[int]:
    return np.flatnonzero(np.unpackbits(matcher.allowed.view(np.uint8), bitorder="little")).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Answers hold to their grammars.


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "drawn"])
def test_answers_under_random_schemas_parse_and_validate(temperature, count, generator):
    chance = np.random.default_rng(int(temperature))
    schemas = [random_schema(chance) for _ in range(count)]
    chats = [CHATS[i % 3] for i in range(count)]
    settings = {"temperature": temperature, "seed": list(range(count)), "max_new_tokens": 600}
    answers = generator.generate(chats, grammar=schemas, **settings)
    ended = [
        (answer, schema) for answer, schema in zip(answers, schemas, strict=True) if answer.finish_reason == "stop"
    ]
    for answer, schema in ended:
        assert_valid(answer.text, schema)
    assert len(ended) >= 0.95 * count
    assert len({answer.text for answer, _ in ended}) > 0.7 * count


SAMPLINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 1},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3},
    {"temperature": 1e300, "top_p": 0.2},  # every allowed token is as likely
    {"temperature": 0.5, "min_p": 1.0, "repetition_penalty": 30.0},
    {"repetition_penalty": 1e-300},
]


@pytest.mark.parametrize("setting", SAMPLINGS, ids=str)
@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (DATE, DATE.pattern),
        (re.compile("(é|日本|😀|x.){2,5}!", re.S), "(?s)(é|日本|😀|x.){2,5}!"),
        (re.compile("abc|stra(ß|ss)e", re.I), "(?i)abc|stra(ß|ss)e"),
        (LARK, LARK_AS_REGEX),
    ],
    ids=["date", "unicode", "ignoring case", "Lark"],
)
def test_a_regex_and_a_lark_grammar_hold(grammar, expected, setting, generator):
    answers = generator.generate(CHATS, grammar=grammar, seed=[1, 2, 3], **setting)
    for answer in answers:
        assert re.fullmatch(expected, answer.text), answer.text
        assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    ("regex", "expected"),
    [
        (re.compile("a"), "a"),
        (re.compile("a", re.IGNORECASE), "aA"),
        (re.compile("(?i)a"), "aA"),
        (re.compile("[^b-\uffff]|."), "\n !AaZé"),
        (re.compile(".|a"), " !AaZé"),
        (re.compile(".", re.DOTALL), "\n !AaZé"),
    ],
    ids=str,
)
def test_the_flags_of_a_regex_hold(regex, expected, generator):
    tokenizer = generator.processor.tokenizer
    allowed = allowed_ids(Grammars(tokenizer, 49280, EOS).matcher(regex))
    tried = {text: tokenizer.encode(text).ids[0] for text in "\n !AaZé"}
    assert {text for text, token_id in tried.items() if token_id in allowed} == set(expected)
    assert all(regex.fullmatch(text) for text in expected)


def test_the_most_likely_token_of_those_allowed_is_taken(generator):
    """`top_k` 1 counts allowed tokens alone. Logprobs are those of the model: other tokens have probability too."""
    (greedy,) = generator.generate(["a"], grammar=DATE, logprobs=True)
    (top,) = generator.generate(["a"], grammar=DATE, logprobs=True, temperature=2.0, top_k=1)
    assert greedy.ids == top.ids
    assert greedy.logprobs == top.logprobs
    (free,) = generator.generate(["a"], max_new_tokens=1, logprobs=True)
    assert free.ids != greedy.ids[:1]
    assert -30 < greedy.logprobs[0] < free.logprobs[0]


def test_json_has_a_space_at_most_unless_the_schema_says_more(generator):
    tokenizer = generator.processor.tokenizer
    space, line = (tokenizer.encode(text).ids[0] for text in " \n")
    grammars = Grammars(tokenizer, 49280, EOS)
    schema = {"type": "array", "items": {"type": "null"}, "minItems": 1}
    more = schema | {"x-guidance": {"whitespace_pattern": "[ \\n]*"}}
    for one, first, second in ((schema, {space}, set()), (more, {space, line}, {space, line})):
        matcher = grammars.matcher(one)
        matcher.accept(tokenizer.encode("[").ids[0])
        assert set(allowed_ids(matcher)) & {space, line} == first
        matcher.accept(space)
        assert set(allowed_ids(matcher)) & {space, line} == second


# ---------------------------------------------------------------------------------------------------------------------
# How an answer ends.


def test_an_answer_ends_as_soon_as_nothing_can_be_added(generator, talker):
    """It needs no token of its end, and so is the same for a model that has none."""
    for one in (generator, make_generator(talker, eos_ids=())):
        (answer,) = one.generate(["a"], grammar=re.compile("yes"))
        assert (answer.text, answer.finish_reason, len(answer.ids)) == ("yes", "stop", 3)
        (answer,) = one.generate(["a"], grammar=re.compile("y"), max_new_tokens=1)
        assert (answer.text, answer.finish_reason, len(answer.ids)) == ("y", "stop", 1)
        (answer,) = one.generate(["a"], grammar=re.compile("yes"), max_new_tokens=2)
        assert (answer.text, answer.finish_reason, len(answer.ids)) == ("ye", "length", 2)
        (answer,) = one.generate(["a"], grammar=re.compile("[ab]+"), max_new_tokens=1)
        assert (answer.finish_reason, len(answer.ids)) == ("length", 1)


def test_an_empty_answer_is_a_token_that_ends_it(generator):
    for grammar in (re.compile(""), 'start: ""'):
        (answer,) = generator.generate(["a"], grammar=grammar)
        assert (answer.text, answer.finish_reason, len(answer.ids)) == ("", "stop", 1)
        assert answer.ids[0] in EOS


def test_a_model_without_eos_has_no_empty_answer(talker, compilations):
    with pytest.raises(ValueError, match=r"grammar must allow a token .* and allows none in place 0"):
        make_generator(talker, eos_ids=()).generate(["a"], grammar=re.compile(""))
    assert not compilations()


def test_any_of_several_eos_ids_ends_an_answer_where_it_may(generator, talker):
    """One of them is a letter too: within the text it does not come, because it would end the answer there."""
    tokenizer = talker.processor.tokenizer
    a, b = tokenizer.encode("ab").ids
    ends = Grammars(tokenizer, 49280, (*EOS, a))
    matcher = ends.matcher(re.compile("ba*|a"))
    assert allowed_ids(matcher) == [b]
    matcher.accept(b)
    assert allowed_ids(matcher) == sorted([*EOS, a])
    assert matcher.complete
    with pytest.raises(ValueError, match="allows none in place 0"):
        ends.matcher(re.compile("ab"))
    found = {
        make_generator(talker, eos_ids=(one,))
        .generate(["a"], grammar=re.compile("b?"), seed=3, temperature=1e9)[0]
        .ids[-1]
        for one in (*EOS, 77)
    }
    assert found <= {*EOS, 77, b}


def test_an_id_of_its_end_may_stand_in_a_grammar(generator):
    (answer,) = generator.generate(["a"], grammar='start: "a" <|im_start|> "b" <|im_end|>')
    assert answer.ids[1:2] == [1]
    assert (answer.text, answer.finish_reason) == ("ab", "stop")


def test_stops_end_an_answer_before_its_grammar(generator):
    grammar = re.compile("[a-z]{12}")
    (free,) = generator.generate(["a"], grammar=grammar, temperature=1.0)
    stop = free.text[6:8]
    (answer,) = generator.generate(["a"], grammar=grammar, temperature=1.0, stop=stop)
    assert (answer.text, answer.finish_reason) == (free.text[: free.text.index(stop)], "stop")
    held = free.text[-2:] + "never"  # the answer's end may become this stop
    assert generator.generate(["a"], grammar=grammar, temperature=1.0, stop=held)[0].text == free.text
    (answer,) = generator.generate(["a"], grammar=grammar, temperature=1.0, should_stop=lambda text: len(text) > 4)
    assert (answer.text, answer.finish_reason) == (free.text[:5], "stop")


def test_a_stream_adds_up_to_the_answer(generator):
    (answer,) = generator.generate(["a"], grammar=LARK, temperature=1.0)
    assert "".join(generator.stream("a", grammar=LARK, temperature=1.0)) == answer.text


def test_a_grammar_that_ends_nowhere_is_told_where(generator):
    """What is forced is tried before any work; what follows a choice shows on the way, and the next call is right."""
    expected = generator.generate(["a"], max_new_tokens=5)[0].ids
    with pytest.raises(ValueError, match=r"grammar must allow a token .* and allows none in place 1: look for parts"):
        generator.generate(["a", "b"], grammar=[None, DEAD_END])
    assert generator.generate(["a"], max_new_tokens=5)[0].ids == expected


# ---------------------------------------------------------------------------------------------------------------------
# Neighbours, and tokens that are not the model's.


@pytest.mark.parametrize("setting", [{}, {"temperature": 1.0, "top_p": 0.9}], ids=["greedy", "drawn"])
def test_an_answer_does_not_depend_on_its_neighbours_grammars(setting, generator):
    grammars = [None, DATE, None, {"enum": ["one", "two"]}, LARK, None]
    chats, seeds = [f"{number} is" for number in range(6)], list(range(6))
    settings = {"max_new_tokens": 12, "logprobs": True} | setting
    together = generator.generate(chats, grammar=grammars, seed=seeds, **settings)
    for chat, grammar, seed, found in zip(chats, grammars, seeds, together, strict=True):
        (alone,) = generator.generate(
            [chat], seed=seed, **settings, **({} if grammar is None else {"grammar": grammar})
        )
        assert (alone.ids, alone.text) == (found.ids, found.text)
        np.testing.assert_allclose(alone.logprobs, found.logprobs, rtol=1e-5)  # in another row of the batch


@pytest.mark.parametrize("size", [49100, 49280, 49301, 60000])
def test_ids_that_the_model_or_the_tokenizer_lacks_are_never_allowed(size, generator):
    tokenizer = generator.processor.tokenizer
    matcher = Grammars(tokenizer, size, (2, 49279, 49300)).matcher(re.compile("(?s).*"))
    assert len(matcher.allowed) == -(-size // 32)
    found = allowed_ids(matcher)
    ends = {one for one in (2, 49279, 49300) if one < size}
    assert set(found) & {2, 49279, 49300} == ends
    assert max(set(found) - ends) < min(size, 49280)
    special = {tokenizer.token_to_id(token) for token in ("<|im_start|>", "<image>", "<|endoftext|>")}
    assert not special & set(found)
    assert len(found) > 48000


# ---------------------------------------------------------------------------------------------------------------------
# Bad input.


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (
            3,
            "must be a JSON schema (a dict), a regex (a re.Pattern of str), a Lark grammar (a str) or None, got 3.",
        ),
        (re.compile(b"a"), "grammar must be a JSON schema (a dict), a regex"),
        ([DATE, DATE], "grammar must be one grammar, or a list with one for each of 1 chats, got 2."),
        ({"name": "string"}, "got {'name': 'string'}: it has none of a schema's keywords, such as type, properties,"),
        (
            {"type": "nonsense"},
            "a JSON schema that llguidance takes, got {'type': 'nonsense'}: Invalid type: nonsense.",
        ),
        ({"type": {1, 2}}, "Object of type set is not JSON serializable."),
        ({"const": float("nan")}, "Out of range float values are not JSON compliant"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum (5) is greater than maximum (4)."),
        ({"allOf": [{"pattern": "^a$"}, {"pattern": "^b$"}], "type": "string"}, "Unsatisfiable schema"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"].'),
        ({"type": "string", "pattern": "("}, "unclosed group."),
        ({"const": "\ud800"}, "unexpected end of hex escape"),
        (re.compile("(a)\\1"), r"a regex that llguidance takes, got '(a)\\1': backreferences are not supported."),
        (re.compile("a(?=b)b"), "look-around, including look-ahead and look-behind, is not supported."),
        (re.compile("a#", re.X | re.A), "of a regex's flags I and S can be kept, and it has re.ASCII|re.VERBOSE."),
        (re.compile("[^\\x00-\U0010ffff]"), "and allows none in place 0: look for parts that exclude each other."),
        ("[a-z]+", "a Lark grammar, as every str is (pass a regex as re.compile(...)), got '[a-z]+': 1(1): "),
        ("", "got '': Empty grammar."),
        ("start: word", """got 'start: word': at 1(8): unknown name: "word"."""),
        ('start: "a" start', "and allows none in place 1 (parser error: Too many items"),
        ('start: "ab" NONE\nNONE: /[0-9]/ & /[a-z]/', "and allows none in place 2: look for parts"),
    ],
    ids=str,
)
def test_what_is_no_grammar_is_refused_before_device_work(grammar, message, generator, compilations):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        generator.generate(["a"], grammar=grammar)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(message)):
        generator.stream("a", grammar=grammar)
    assert not compilations()


def test_without_the_library_the_extra_is_named(generator, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)  # as if it were not installed
    with pytest.raises(ImportError, match=re.escape("install multipatch_jax[grammar].")):
        generator.generate(["a"], grammar=DATE)
    assert generator.generate(["a"], max_new_tokens=1)[0].ids

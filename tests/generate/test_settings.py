"""Settings: what is allowed, what a wrong one says, and what sampling reads of them."""

import re

import numpy as np
import pytest

from multipatch_jax.generate.settings import GenerationSettings, settings_of_chats


def test_the_defaults_are_the_contracts():
    assert GenerationSettings() == GenerationSettings(
        max_new_tokens=64, temperature=0.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0, seed=0, stop=()
    )


def test_numbers_of_numpy_and_one_stop_are_taken():
    given = {"max_new_tokens": np.int64(5), "temperature": np.float32(0.5), "top_k": np.int32(3), "seed": np.int64(7)}
    (found,) = settings_of_chats(1, given | {"stop": "\n"})
    assert found == GenerationSettings(max_new_tokens=5, temperature=0.5, top_k=3, seed=7, stop=["\n"])
    assert found.stop == ("\n",)
    assert {type(found.max_new_tokens), type(found.top_k), type(found.seed)} == {int}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive number of tokens, got 0."),
        ({"max_new_tokens": True}, "max_new_tokens must be a positive number of tokens, got True."),
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0.1."),
        ({"temperature": float("nan")}, "temperature must be a finite number of at least 0, got nan."),
        ({"temperature": None}, "temperature must be a finite number of at least 0, got None."),
        ({"top_k": 0}, "top_k must be a positive number of tokens or None, got 0."),
        ({"top_k": 2.0}, "top_k must be a positive number of tokens or None, got 2.0."),
        ({"top_p": 0}, "top_p must be None or a number above 0 and at most 1, got 0."),
        ({"top_p": 1.1}, "top_p must be None or a number above 0 and at most 1, got 1.1."),
        ({"top_p": "0.9"}, "top_p must be None or a number above 0 and at most 1, got '0.9'."),
        ({"min_p": -1}, "min_p must be None or a number from 0 to 1, got -1."),
        ({"min_p": float("nan")}, "min_p must be None or a number from 0 to 1, got nan."),
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number above 0, got 0."),
        ({"seed": -1}, "seed must be an integer from 0 to 2147483647, got -1."),
        ({"seed": 2**31}, "seed must be an integer from 0 to 2147483647, got 2147483648."),
        ({"seed": 0.5}, "seed must be an integer from 0 to 2147483647, got 0.5."),
        ({"stop": [""]}, "stop must be a text or a list of texts, none of them empty, got ['']."),
        ({"stop": ""}, "stop must be a text or a list of texts, none of them empty, got ''."),
        ({"stop": [3]}, "stop must be a text or a list of texts, none of them empty, got [3]."),
        ({"stop": None}, "stop must be a text or a list of texts, none of them empty, got None."),
        ({"stop": b"x"}, "stop must be a text or a list of texts, none of them empty, got b'x'."),
        ({"skip_special_tokens": 0}, "skip_special_tokens must be a bool, got 0."),
        ({"should_stop": "x"}, "should_stop must be a function (text) -> bool or None, got 'x'."),
        (
            {"grammar": 3},
            "grammar must be a JSON schema (a dict), a regex (a re.Pattern of str), a Lark grammar (a str) or",
        ),
        (
            {"grammar": re.compile(b"a")},
            "grammar must be a JSON schema (a dict), a regex (a re.Pattern of str), a Lark",
        ),
        ({"grammar": ["a"]}, "grammar must be one grammar, or a list with one for each of 2 chats, got 1."),
        ({"temprature": 1}, "Unknown setting 'temprature': the settings are max_new_tokens, temperature, top_k,"),
        ({"seed": [1, 2, 3]}, "seed must be an integer, or a list with one for each of 2 chats, got 3."),
        ({"seed": [1, -1]}, "seed must be an integer from 0 to 2147483647, got -1."),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        settings_of_chats(2, given)


def test_a_seed_is_for_every_chat_or_one_for_each():
    assert [one.seed for one in settings_of_chats(3, {"seed": 5, "top_k": 2})] == [5, 5, 5]
    for seeds in ([3, 4, 5], (3, 4, 5), np.array([3, 4, 5])):
        found = settings_of_chats(3, {"seed": seeds, "top_k": 2})
        assert [one.seed for one in found] == [3, 4, 5]
        assert {one.top_k for one in found} == {2}


def test_a_grammar_is_for_every_chat_or_one_for_each():
    assert [one.grammar for one in settings_of_chats(2, {"grammar": {"type": "null"}})] == [{"type": "null"}] * 2
    grammars = [None, "start: /a/", re.compile("a")]
    assert [one.grammar for one in settings_of_chats(3, {"grammar": grammars})] == grammars


def test_sampling_has_the_neutral_value_of_what_is_off():
    assert tuple(GenerationSettings().sampling()) == (0, 0, 1, 0, 1, 0)
    found = GenerationSettings(
        temperature=0.5, top_k=2**40, top_p=0.25, min_p=0.125, repetition_penalty=1.5, seed=2**31 - 1
    ).sampling()
    assert tuple(found) == (0.5, 2**31 - 1, 0.25, 0.125, 1.5, 2**31 - 1)
    assert [field.dtype.name for field in found] == ["float32", "int32", *["float32"] * 3, "int32"]
    assert GenerationSettings(temperature=1e300).sampling().temperature == np.inf

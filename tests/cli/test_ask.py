"""`multipatch-jax ask`: the answer to standard output, its statistics to standard error."""

import dataclasses
import importlib.util
import io
import json
import re
import signal
import sys

import numpy as np
import pytest
from PIL import Image

import multipatch_jax as mp
from tests.helpers.models import TINY_SMOLVLM, make_model
from tests.helpers.tokenizer import save_tokenizer

CONTENT = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
QUESTION = [{"role": "user", "content": CONTENT}]
STATISTICS = r"multipatch-jax ask: (\d+) tokens, [\d.]+ tokens/s; encode [\d.]+ s, prefill [\d.]+ s, decode [\d.]+ s\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_model(TINY_SMOLVLM, tmp_path_factory.mktemp("talker")).folder
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder, photo):
    """The answer about two photographs, by the library."""
    generator = mp.Generator.from_pretrained(folder)
    (answer,) = generator.generate([QUESTION], [photo, photo[:99]], max_new_tokens=6, temperature=0.5, seed=3)
    return answer


def test_ask_prints_the_answer_and_statistics(run, folder, expected, photo, photo_file, tmp_path):
    Image.fromarray(photo[:99]).save(tmp_path / "part.png")
    question = ("ask", photo_file, tmp_path / "part.png", "What is it?", "--model", folder)
    status, out, err = run(*question, "--max-tokens", 6, "--temperature", 0.5, "--seed", 3)
    assert (status, out) == (0, expected.text + "\n")
    found = re.fullmatch(STATISTICS, err)
    assert found
    assert found[1] == str(len(expected.ids))
    status, out, err = run(*question, "--max-tokens", 6, "--temperature", 0.5, "--seed", 3, "--json")
    assert status == 0
    assert re.fullmatch(STATISTICS, err)
    answer = json.loads(out)
    assert set(answer) == {field.name for field in dataclasses.fields(mp.generate.Answer)} - {"logprobs"}
    assert (answer["text"], answer["ids"]) == (expected.text, expected.ids)
    assert answer["finish_reason"] == "length"


def test_a_heatmap_is_drawn_of_all_photographs(run, folder, expected, photo, photo_file, tmp_path):
    """The numbers are those of `explain`, by the picture that the library draws of them."""
    Image.fromarray(photo[:99]).save(tmp_path / "part.png")
    question = ("ask", photo_file, tmp_path / "part.png", "What is it?", "--model", folder, "--max-tokens", 6)
    heatmap = tmp_path / "heat.png"
    status, out, err = run(*question, "--temperature", 0.5, "--seed", 3, "--heatmap", heatmap)
    assert (status, out) == (0, expected.text + "\n")
    assert re.fullmatch(STATISTICS + f"multipatch-jax ask: wrote {re.escape(str(heatmap))}\n", err)
    generator = mp.Generator.from_pretrained(folder)
    numbers = generator.explain(QUESTION, [photo, photo[:99]], expected)
    mp.plot.plot_saliency([photo, photo[:99]], numbers, generator.config).savefig(tmp_path / "expected.png")
    drawn, same = (np.asarray(Image.open(tmp_path / name)) for name in ("heat.png", "expected.png"))
    np.testing.assert_array_equal(drawn, same)


def test_a_heatmap_without_matplotlib_is_refused_before_any_work(run, photo_file, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    status, out, err = run("ask", photo_file, "What is it?", "--model", "nowhere", "--heatmap", "heat.png")
    assert (status, out) == (2, "")
    assert 'pip install "multipatch_jax[demo]"' in err


def test_a_chat_is_a_session(run, folder, photo, photo_file, monkeypatch):
    """Questions are lines of standard input; a blank line is none."""
    session = mp.Generator.from_pretrained(folder).session([photo])
    expected = [session.ask(question, max_new_tokens=5) for question in ("What is it?", "Why?")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\n\n Why?\n"))
    status, out, err = run("ask", photo_file, "--model", folder, "--max-tokens", 5)
    assert (status, out) == (0, "".join(f"{answer.text}\n" for answer in expected))
    assert re.fullmatch(STATISTICS * 2, err)
    monkeypatch.setattr(sys, "stdin", None)  # closed
    assert run("ask", photo_file, "--model", folder) == (0, "", "")


def test_bytes_that_are_no_utf_8_do_not_end_a_chat(run, folder, photo_file, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\nWhy?\n"), encoding="utf-8"))
    status, _, err = run("ask", photo_file, "--model", folder, "--max-tokens", 2)
    assert status == 0
    assert re.fullmatch(STATISTICS * 2, err)


@pytest.mark.parametrize("question", ["is this cat.png", "why? " * 100])  # the longer one can be no file's name
def test_a_question_may_look_like_a_file(question, run, folder, photo_file):
    status, out, _ = run("ask", photo_file, question, "--model", folder, "--max-tokens", 2)
    assert status == 0
    assert out.count("\n") == 1


class InterruptingStream(io.StringIO):
    """A standard output at whose second piece of text Ctrl-C comes."""

    pieces = 0

    def write(self, text):
        self.pieces += 1
        if self.pieces == 2:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


class WatchedStream(io.StringIO):
    """A buffered standard output, and what of it somebody has seen after each flush."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def flush(self):
        self.seen.append(self.getvalue())


def test_the_answer_is_seen_while_it_grows(run, folder, photo_file, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream := WatchedStream())
    status, _, _ = run("ask", photo_file, "What is it?", "--model", folder, "--max-tokens", 6)
    assert status == 0
    assert len({seen for seen in stream.seen if seen and not seen.endswith("\n")}) > 1


def test_ctrl_c_keeps_what_was_printed(run, folder, photo_file, monkeypatch):
    stream = InterruptingStream()
    monkeypatch.setattr(sys, "stdout", stream)
    status, _, err = run("ask", photo_file, "What is it?", "--model", folder)
    assert (status, err) == (130, "multipatch-jax ask: interrupted\n")
    assert stream.getvalue().count("\n") == 1
    assert len(stream.getvalue()) > 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ask --model MODEL", "the following arguments are required"),
        ("ask what? --model MODEL", "what?"),
        ("ask PHOTO no.jpg --model MODEL", "no.jpg"),
        ("ask no.jpg what? --model MODEL", "no.jpg"),
        ("ask PHOTO what? --model nowhere", "There is no folder nowhere, and it is not a hub id"),
        ("ask PHOTO what? --model MODEL --max-tokens 0", "max_new_tokens must be a positive number"),
        ("ask PHOTO what? --model MODEL --temperature -1", "temperature must be a finite number of at least 0"),
        ("ask PHOTO what? --model MODEL --seed -1", "seed must be an integer from 0"),
        ("ask PHOTO --model MODEL --heatmap heat.png", "--heatmap draws what one answer looked at: give a question"),
        ("ask PHOTO what? --model MODEL --heatmap heat.txt", "--heatmap writes .png, .jpg, .jpeg, .webp, got heat.txt"),
        ("ask PHOTO what? --model MODEL --heatmap PHOTO", "would replace the input"),
        ("ask PHOTO what? --model MODEL --heatmap nowhere/heat.png", "nowhere"),
        ("ask PHOTO what? --model MODEL --revision main", "--revision is for a hub id"),
    ],
)
def test_bad_input_is_one_line(command, message, run, folder, photo_file):
    words = [{"PHOTO": photo_file, "MODEL": folder}.get(word, word) for word in command.split()]
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("usage: ") or len(err.splitlines()) == 1


def test_a_missing_library_is_named_with_what_to_install(run, folder, photo_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    status, _, err = run("ask", photo_file, "What is it?", "--model", folder)
    assert status == 2
    assert "install multipatch_jax[text]" in err
    assert len(err.splitlines()) == 1

"""Ids to text, a token at a time: whole characters, and the same text as all at once."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from multipatch_jax.generate.detokenize import Detokenizer
from multipatch_jax.text import Processor
from tests.helpers.tokenizer import save_tokenizer, special_tokens

REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Processor:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Processor.from_pretrained(folder)


def pieces_of(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = True) -> tuple[list[str], str]:
    """(the piece of each id, what was left at the end)."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens)
    return [detokenizer.push(one) for one in ids], detokenizer.flush()


TEXTS = st.text(st.sampled_from("aé ß漢字\n🤖👩‍👩‍👧e\u0301\ufffd")) | st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_a_text_comes_in_whole_characters(processor, text):
    assume(not any(token in text for token in special_tokens()))  # hypothesis draws words of this code too
    ids = processor.tokenizer.encode(text).ids
    pieces, rest = pieces_of(processor.tokenizer, ids)
    assert "".join(pieces) + rest == processor.decode(ids) == text
    if REPLACEMENT not in text:
        assert REPLACEMENT not in "".join(pieces)
        assert rest == ""


BYTES = st.sampled_from(sorted(pre_tokenizers.ByteLevel.alphabet()))
IDS = st.integers(0, 49279) | st.sampled_from(list(special_tokens().values()))


@settings(max_examples=100, deadline=None)
@given(drawn=st.lists(BYTES | IDS, max_size=40), skip=st.booleans())
def test_any_ids_give_the_text_of_all_at_once(processor, drawn, skip):
    tokenizer = processor.tokenizer
    ids = [one if isinstance(one, int) else tokenizer.token_to_id(one) for one in drawn]
    pieces, rest = pieces_of(tokenizer, ids, skip)
    assert "".join(pieces) + rest == tokenizer.decode(ids, skip_special_tokens=skip)


def test_a_character_comes_with_the_last_of_its_tokens(processor):
    ids = processor.tokenizer.encode("a🤖b").ids
    assert len(ids) == 6
    assert pieces_of(processor.tokenizer, ids) == (["a", "", "", "", "🤖", "b"], "")
    assert pieces_of(processor.tokenizer, ids[:3]) == (["a", "", ""], REPLACEMENT)


def test_special_tokens_stay_if_asked_for(processor):
    ids = processor.tokenizer.encode("a<end_of_utterance>b").ids
    assert pieces_of(processor.tokenizer, ids)[0] == ["a", "", "b"]
    assert pieces_of(processor.tokenizer, ids, skip_special_tokens=False)[0] == ["a", "<end_of_utterance>", "b"]


def test_a_decoder_that_looks_at_neighbours_gives_the_text_of_all_at_once():
    """One like SentencePiece's, which drops a space in front, and has tokens for single bytes."""
    vocabulary = {token: index for index, token in enumerate(["▁a", "▁b", "c", "<0xC3>", "<0xA9>", "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    ids = [0, 1, 2, 3, 4, 1]
    pieces, rest = pieces_of(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids) == "a bcé b"
    assert pieces[3:5] == ["", "é"]

"""The reader's training, as its README runs it, for a few steps."""

import csv

import numpy as np
import pytest

import multipatch_jax as mp
from examples.reader import ahead, curve, reading, stages, tower, train
from examples.reader.model import READ, VOCABULARY, reader_config, write_tokenizer

CONFIG = reader_config()


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return mp.Processor.from_pretrained(folder)


def test_the_tokenizer_writes_digits_one_by_one_and_any_text(processor):
    tokens = processor.tokenizer.encode(f"{READ} 1234")
    assert tokens.tokens[-5:] == ["Ġ", "1", "2", "3", "4"]
    assert processor.tokenizer.get_vocab_size() <= VOCABULARY
    for text in ("Grüße, ☃!", "How many numbers are there?", ""):
        assert processor.decode(processor.tokenizer.encode(text).ids) == text


def losses(folder, stage):
    with (folder / f"{stage}.csv").open() as file:
        return {int(row[0]): float(row[1]) for row in csv.reader(file)}


def test_a_stopped_stage_goes_on_and_the_next_one_starts_from_it(tmp_path, capsys):
    """From random weights: twelve steps of the first stage lower its loss, in one run and in two, bit for bit."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ["--stage", "tower", "--steps", "12"]
    train.main([*options, "--out", str(whole)])
    train.main([*options, "--out", str(stopped), "--until", "5"])
    assert not (stopped / "tower-model").exists()
    train.main([*options, "--out", str(stopped)])
    first = losses(whole, "tower")
    assert first == losses(stopped, "tower")
    assert first[12] < 0.95 * first[1]
    for folder in (whole, stopped):
        config, params = mp.from_pretrained(folder / "tower-model", parts="all")
        assert config == CONFIG
        assert params["digit_head"]["kernel"].shape == (128, 33)
    train.main(["--stage", "decoder", "--steps", "2", "--out", str(whole)])
    _, after = mp.from_pretrained(whole / "decoder-model", parts="all")
    _, before = mp.from_pretrained(whole / "tower-model", parts="all")
    moved = {
        path.split("/")[0]
        for path, x in mp.params.flatten(after).items()
        if not np.array_equal(x, mp.params.flatten(before)[path])
    }
    assert moved == {"text_model"}  # the tower is frozen
    curve.main([str(whole), str(stopped), "--out", str(tmp_path / "curve.png")])
    printed = capsys.readouterr().out
    assert f"loss {first[1]:.2f} at first" in printed
    assert printed.count("tower       12 steps") == 2  # of the stopped run too, whose file has two processes
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_a_stage_without_the_one_before_it_says_which_to_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["--stage", "whole", "--out", str(tmp_path / "run")])
    assert "which is not there: finish --stage decoder first" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", stages.STAGES)
def test_batches_are_functions_of_seed_and_step(stage, processor):
    make = stages.STAGES[stage].batch
    first, again, other = (make(step, seed=0, config=CONFIG, processor=processor) for step in (3, 3, 4))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert not np.array_equal(first["tiles"], other["tiles"])


def test_labels_of_a_chat_are_its_answers(processor):
    batch = reading.small_batch(0, seed=0, config=CONFIG, processor=processor)
    for ids, labels in zip(batch["input_ids"][:4], batch["labels"][:4], strict=True):
        shown = processor.tokenizer.decode(labels[labels >= 0].tolist(), skip_special_tokens=False)
        assert shown.count("<end_of_utterance>") == 3
        assert set(shown.replace("<end_of_utterance>", "")) <= set("0123456789 ")
        assert (ids[labels >= 0] == labels[labels >= 0]).all()


def times_two(step):
    return 2 * step


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_made_ahead_are_the_same(workers):
    with ahead.made_ahead(times_two, workers, 9) as batch:
        assert [batch(step) for step in range(4, 9)] == [8, 10, 12, 14, 16]


def test_the_towers_loss_is_that_of_guessing_at_the_start():
    params = train.initial_params(0, CONFIG)
    batch = tower.batch(0, seed=0, config=CONFIG, tiles=8)
    loss = tower.loss(params, batch, None, lambda params, tiles: mp.encode_tiles(params, tiles, config=CONFIG))
    assert abs(float(loss) - 3 * np.log(11)) < 0.1

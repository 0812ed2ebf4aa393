"""Too little memory for the slots of a generator is an error that says what to lower."""

import pytest

import multipatch_jax as mp
from multipatch_jax.cli.ending import run_command


def make(talker, **options):
    return mp.Generator(talker.params, config=talker.config, processor=talker.processor, **options)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"max_length": 10**13}, "chats of up to [0-9]{13,} tokens, 1 at"), ({"batch_size": 10**9}, ".* 1000000000 at")],
)
def test_a_generator_that_is_too_large_says_so(options, size, talker):
    generator = make(talker, **options)
    with pytest.raises(MemoryError, match=f"memory for {size} a time: lower the generator's batch_size or max_length"):
        generator.generate(["a"], max_new_tokens=10**12)


def test_a_session_that_is_too_large_says_so(talker):
    with pytest.raises(MemoryError, match="memory for chats of up to"):
        make(talker, max_length=10**13).session()


def test_after_the_error_a_short_chat_is_answered(talker):
    generator = make(talker, max_length=10**13)
    with pytest.raises(MemoryError):
        generator.generate(["a"], max_new_tokens=10**12)
    (answer,) = generator.generate(["a"], max_new_tokens=2)
    assert len(answer.ids) == 2


def test_a_command_without_memory_ends_in_one_line(capsys):
    def make_parser():
        raise MemoryError("too little of it")

    assert run_command("name", make_parser, []) == 2
    assert capsys.readouterr().err == "name: too little of it\n"

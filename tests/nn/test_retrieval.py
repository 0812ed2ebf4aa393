"""The head of a retriever: what does not fit is refused, and padding gives zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multipatch_jax as mp

RNG = np.random.default_rng(0)
HEAD = {"kernel": RNG.normal(size=(6, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}
HIDDEN = RNG.normal(size=(2, 3, 6)).astype(np.float32)
MASK = np.array([[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("head", "hidden", "mask", "message"),
    [
        (None, HIDDEN, MASK, 'no head of a retriever: load a ColIdefics3 checkpoint with parts="text"'),
        ({"kernel": HEAD["kernel"]}, HIDDEN, MASK, "no head of a retriever"),
        (HEAD, HIDDEN[0], MASK, r"hidden_states must be floating of shape \(B, S, 6\)"),
        (HEAD, HIDDEN[..., :5], MASK, r"hidden_states must be floating of shape \(B, S, 6\)"),
        (HEAD, HIDDEN, MASK[:1], r"attention_mask must be integers of shape \(2, 3\), got int64 of shape \(1, 3\)"),
        (HEAD, HIDDEN, None, r"attention_mask must be integers of shape \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(head, hidden, mask, message):
    """A mask of one text would be taken for all of a batch."""
    with pytest.raises(ValueError, match=message):
        mp.nn.retrieval_embeddings({"linear": head}, hidden, mask)


def test_padding_gives_zeros_whatever_it_holds():
    """Hidden states of zeros, and no bias, have no direction."""
    hidden = HIDDEN.copy()
    hidden[1, 1:] = 0
    vectors = mp.nn.retrieval_embeddings({"linear": HEAD}, hidden, MASK)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), MASK, atol=1e-6)
    same = jax.jit(mp.nn.retrieval_embeddings)({"linear": HEAD}, jnp.asarray(hidden), MASK == 1)
    np.testing.assert_array_equal(same, vectors)

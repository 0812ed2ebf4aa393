"""The losses against their papers' definitions, written out with loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multipatch_jax.train import losses
from tests.helpers import tolerances


def test_distillation_is_the_mean_squared_error_and_leaves_the_teacher_alone():
    rng = np.random.default_rng(0)
    tokens, teacher = (jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32) for _ in range(2))
    loss = losses.distillation_loss(tokens, teacher)
    assert float(loss) == pytest.approx(np.mean((np.float64(tokens) - np.float64(teacher)) ** 2), rel=1e-6)
    to_tokens, to_teacher = jax.grad(losses.distillation_loss, argnums=(0, 1))(tokens, teacher)
    np.testing.assert_allclose(to_tokens, 2 * (tokens - teacher) / 60, rtol=1e-6)
    assert not np.any(to_teacher)


def test_distillation_in_bfloat16_is_computed_in_float32():
    tokens, teacher = jnp.full((1, 1, 3), 256, jnp.bfloat16), jnp.full((1, 1, 3), 1, jnp.bfloat16)
    assert float(losses.distillation_loss(tokens, teacher)) == 255.0**2  # a number that bfloat16 does not have


def test_a_teacher_of_another_shape_is_not_broadcast():
    with pytest.raises(ValueError, match=r"must have the shape of ours, \(2, 4, 5\), got \(2, 1, 5\)"):
        losses.distillation_loss(jnp.zeros((2, 4, 5)), jnp.zeros((2, 1, 5)))


@pytest.mark.parametrize("given", [False, True])
def test_sigmoid_contrastive_loss_is_the_papers(given):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 5, 7))
    together = np.eye(5, dtype=bool)
    together[1, 3] = given
    log_scale, bias, expected = np.log(10), -3.0, 0.0
    for i in range(5):
        for j in range(5):
            logit = np.exp(log_scale) * a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j]) + bias
            expected += np.log1p(np.exp(-logit if together[i, j] else logit)) / 5
    loss = losses.sigmoid_contrastive_loss(
        jnp.float32(a),
        jnp.float32(b),
        log_scale=jnp.float32(log_scale),
        bias=jnp.float32(bias),
        positives=jnp.asarray(together) if given else None,
    )
    assert float(loss) == pytest.approx(expected, rel=tolerances.SAME_PROGRAM * 10)


def test_a_vector_of_zeros_gives_no_nan():
    def loss(a):
        return losses.sigmoid_contrastive_loss(a, jnp.ones((2, 3)), log_scale=jnp.zeros(()), bias=jnp.zeros(()))

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 3)).at[1].set(1.0))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((2, 4, 3), (2, 4, 3))])
def test_sides_must_be_pairs(shapes):
    with pytest.raises(ValueError, match=r"one shape \(B, D\)"):
        losses.sigmoid_contrastive_loss(
            *(jnp.ones(shape) for shape in shapes), log_scale=jnp.zeros(()), bias=jnp.zeros(())
        )


@pytest.mark.parametrize("positives", [np.ones(2, bool), np.ones((3, 2), bool), 2 * np.eye(2) - 1])
def test_positives_must_be_yes_or_no_for_every_pair(positives):
    """One row would be broadcast, and both of the paper's labels, -1 and 1, would count as a yes."""
    with pytest.raises(ValueError, match=r"positives must be bool of shape \(2, 2\), got (bool|float64) of shape"):
        losses.sigmoid_contrastive_loss(
            jnp.ones((2, 3)), jnp.ones((2, 3)), log_scale=jnp.zeros(()), bias=jnp.zeros(()), positives=positives
        )


def test_pooling_is_the_mean_over_tokens():
    tokens = np.random.default_rng(2).normal(size=(2, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(losses.pool_tokens(jnp.asarray(tokens)), tokens.mean(axis=1), rtol=1e-5, atol=1e-6)
    assert losses.pool_tokens(jnp.asarray(tokens, jnp.bfloat16)).dtype == jnp.float32

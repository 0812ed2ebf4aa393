"""Choose the next token of every row of a batch from its logits.

The logits are processed as in transformers 5.23, in its order: repetition penalty, temperature, top-k, top-p, min-p.
All settings are data of a row, so one program serves every mix of them. A step pays for what one of its rows needs:
filters are left out of a step in which no row has them, and so are draws. Nothing is sorted: the least logit that a
filter keeps is found by bisection.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt32

LEAST_TEMPERATURE = 1e-30  # a lower one counts as 0: logits divided by it could be infinite
BLOCK = 128  # ids; a draw first chooses a block of them, and then one of its ids
WORD = 32  # ids; the bit of id `i` in a set of ids is bit `i % WORD` of word `i // WORD`, counted from the least


class Sampling(NamedTuple):
    """How the rows of a batch are sampled. The neutral value of a field leaves the logits as they are, bit for bit.

    Attributes:
      temperature: the logits are divided by it; 0 takes the most likely token, whatever the filters; 1 is neutral.
      top_k: keeps the tokens at least as likely as the one in this place; 0 is neutral.
      top_p: keeps the most likely tokens, until their probabilities add up to this; 1 is neutral. It keeps all of
        several equally likely tokens, or none.
      min_p: keeps the tokens at least this many times as likely as the most likely one; 0 is neutral.
      repetition_penalty: divides the positive logits of tokens that were seen, and multiplies the negative ones; 1 is
        neutral.
      seed: from 0. A draw depends on it, on the position and on the row's own logits, and on no other row.
    """

    temperature: Float32[Any, " B"]
    top_k: Int32[Any, " B"]
    top_p: Float32[Any, " B"]
    min_p: Float32[Any, " B"]
    repetition_penalty: Float32[Any, " B"]
    seed: Int32[Any, " B"]


def pack_ids(ids: Iterable[int] | Int[np.ndarray, " n"], vocab_size: int) -> UInt32[np.ndarray, " words"]:
    """Return a set of ids as the bits of words."""
    bits = np.zeros(-(-vocab_size // WORD) * WORD, bool)
    bits[list(ids)] = True
    return np.packbits(bits, bitorder="little").view(np.uint32)


def all_ids(vocab_size: int) -> UInt32[np.ndarray, " words"]:
    """Return the set of all ids as `pack_ids` would; bits behind the last id are set too."""
    return ~pack_ids((), vocab_size)


@jax.jit
def sample(
    logits: Float32[Array, "B V"],
    sampling: Sampling,
    positions: Int32[Array, " B"],
    seen: Bool[Array, "B V"],
    allowed: UInt32[Array, "B words"] | None = None,
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """Choose a token for every row.

    Args:
      logits: of the next token.
      sampling: the settings of each row.
      positions: where the next token will stand in its row.
      seen: which ids the prompt and the answer of a row hold so far. As in the reference, those of `<image>` and of
        the markers around it count.
      allowed: the ids that may be chosen, as `pack_ids` packs them; None allows all.

    Returns:
      (ids, logprobs). A logprob is that of the chosen token in the model's own distribution: no setting changes it,
      nor does `allowed`. A row whose logits of allowed ids are all -inf, or that has a NaN or +inf among its logits,
      has the id -1 and the logprob NaN.
    """
    scores = process_logits(logits, sampling, seen, allowed)
    greedy = sampling.temperature < LEAST_TEMPERATURE
    most_likely = _first_of_largest(scores)
    ids = jax.lax.cond(
        jnp.all(greedy),
        lambda: most_likely,
        lambda: jnp.where(greedy, most_likely, _draw(scores, sampling.seed, positions)),
    )
    total = jax.nn.logsumexp(logits, axis=-1)
    usable = jnp.isfinite(total) & (jnp.take_along_axis(scores, ids[:, None], axis=-1)[:, 0] != -jnp.inf)
    ids = jnp.where(usable, ids, -1)
    return ids, jnp.where(usable, jnp.take_along_axis(logits, ids[:, None], axis=-1)[:, 0] - total, jnp.nan)


def process_logits(
    logits: Float32[Array, "B V"],
    sampling: Sampling,
    seen: Bool[Array, "B V"],
    allowed: UInt32[Array, "B words"] | None = None,
) -> Float32[Array, "B V"]:
    """Apply each row's penalty, temperature and filters; what is not allowed, or a filter does not keep, becomes -inf.

    Args:
      logits, sampling, seen, allowed: as in `sample`. The filters know of allowed ids alone.
    """
    penalty = sampling.repetition_penalty[:, None]
    scores = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    drawn = sampling.temperature >= LEAST_TEMPERATURE
    scores = scores / jnp.where(drawn, sampling.temperature, 1)[:, None]
    if allowed is not None:
        some = jnp.any(allowed != jnp.uint32(2**WORD - 1), axis=-1)
        scores = _filter(scores, some, lambda scores: _unpack(allowed, scores.shape[1]))
    scores = _filter(scores, drawn & (sampling.top_k > 0), lambda scores: _keep_top_k(scores, sampling.top_k))
    scores = _filter(scores, drawn & (sampling.top_p < 1), lambda scores: _keep_top_p(scores, sampling.top_p))
    return _filter(scores, drawn & (sampling.min_p > 0), lambda scores: _keep_min_p(scores, sampling.min_p))


def _filter(
    scores: Float32[Array, "B V"],
    active: Bool[Array, " B"],
    keep: Callable[[Float32[Array, "B V"]], Bool[Array, "B V"]],
) -> Float32[Array, "B V"]:
    """Set what `keep` does not keep to -inf, in the rows that are `active`."""
    return jax.lax.cond(
        jnp.any(active),
        lambda: jnp.where(keep(scores) | ~active[:, None], scores, -jnp.inf),
        lambda: scores,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The filters: which tokens each keeps.


def _unpack(allowed: UInt32[Array, "B words"], vocab_size: int) -> Bool[Array, "B V"]:
    bits = allowed[:, :, None] >> jnp.arange(WORD, dtype=jnp.uint32)[None, None] & jnp.uint32(1)
    return bits.reshape(len(allowed), -1)[:, :vocab_size] != 0


def _keep_top_k(scores: Float32[Array, "B V"], top_k: Int32[Array, " B"]) -> Bool[Array, "B V"]:
    order = _order(scores)
    kth = _last(lambda tried: jnp.sum(order >= tried, axis=-1, keepdims=True) >= top_k[:, None], len(scores))
    return order >= kth


def _keep_top_p(scores: Float32[Array, "B V"], top_p: Float32[Array, " B"]) -> Bool[Array, "B V"]:
    order, probabilities = _order(scores), jax.nn.softmax(scores, axis=-1)

    def may_go(tried: UInt32[Array, "B 1"]) -> Bool[Array, "B 1"]:
        return jnp.sum(jnp.where(order < tried, probabilities, 0), axis=-1, keepdims=True) <= 1 - top_p[:, None]

    least = jnp.minimum(_last(may_go, len(scores)), jnp.max(order, axis=-1, keepdims=True))
    return order >= least


def _keep_min_p(scores: Float32[Array, "B V"], min_p: Float32[Array, " B"]) -> Bool[Array, "B V"]:
    probabilities = jax.nn.softmax(scores, axis=-1)
    return probabilities >= min_p[:, None] * jnp.max(probabilities, axis=-1, keepdims=True)


def _order(scores: Float32[Array, "B V"]) -> UInt32[Array, "B V"]:
    """Return integers in the order of the scores; equal scores, 0 and -0 among them, have equal integers."""
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _last(holds: Callable[[UInt32[Array, "B 1"]], Bool[Array, "B 1"]], rows: int) -> UInt32[Array, "B 1"]:
    """Return the largest integer of each row that `holds`, which holds for 0 and up to that integer."""

    def try_bit(step: Int[Array, ""] | int, found: UInt32[Array, "B 1"]) -> UInt32[Array, "B 1"]:
        tried = found | (jnp.uint32(1 << 31) >> jnp.asarray(step, jnp.uint32))
        return jnp.where(holds(tried), tried, found)

    return jax.lax.fori_loop(0, 32, try_bit, jnp.zeros((rows, 1), jnp.uint32))


# ---------------------------------------------------------------------------------------------------------------------
# The choice.


def _first_of_largest(scores: Float32[Array, "B V"]) -> Int32[Array, " B"]:
    """`jnp.argmax`, in the form of two reductions that XLA vectorises on a CPU."""
    largest = jnp.max(scores, axis=-1, keepdims=True)
    ids = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    return jnp.min(jnp.where(scores == largest, ids, scores.shape[1] - 1), axis=-1)


def _draw(
    scores: Float32[Array, "B V"], seeds: Int32[Array, " B"], positions: Int32[Array, " B"]
) -> Int32[Array, " B"]:
    """Draw an id of every row with probability softmax(scores), by two random numbers: of its block, and within it."""

    def two_numbers(seed: Int32[Array, ""], position: Int32[Array, ""]) -> Float32[Array, " 2"]:
        # Of "threefry2x32" it is certain that a row's numbers do not depend on the batch.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
        return jax.random.uniform(key, (2,), jnp.float32)

    of_block, within = jax.vmap(two_numbers, out_axes=1)(seeds, positions)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    rows, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % BLOCK))).reshape(rows, -1, BLOCK)
    block = _at_share(jnp.sum(blocks, axis=-1), of_block)
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _at_share(chosen, within)


def _at_share(weights: Float32[Array, "B n"], share: Float32[Array, " B"]) -> Int32[Array, " B"]:
    """Return the place in each row where its running sum passes `share` of the total; its weight is not 0."""
    sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0)
    return jnp.argmax(sums > share[:, None] * jnp.max(sums, axis=-1, keepdims=True), axis=-1).astype(jnp.int32)

"""The visual tokens that a generator remembers, when several threads ask it."""

import collections
import concurrent.futures
import time

import numpy as np

from multipatch_jax.generate import visual_tokens
from multipatch_jax.generate.visual_tokens import Source, VisualTokens
from multipatch_jax.nn import Compute
from tests.helpers.models import TINY


class SlowDict(collections.OrderedDict):
    """Lets another thread go on whenever it has looked for a key."""

    def __contains__(self, key):
        found = super().__contains__(key)
        time.sleep(1e-5)
        return found


def test_threads_leave_the_count_of_bytes_right(monkeypatch):
    """A count that grew by itself would in the end leave no room for any tokens."""
    tokens = np.zeros((4, TINY.connector.text_hidden_size), np.float32)
    monkeypatch.setattr(visual_tokens, "encode_images", lambda params, images, **how: [tokens.copy() for _ in images])
    monkeypatch.setattr(visual_tokens, "REMEMBERED", 20 * tokens.nbytes)
    known = VisualTokens({}, TINY, Compute())
    known._known = SlowDict()

    def ask(seed):
        for colour in np.random.default_rng(seed).integers(0, 60, 100):
            known.of([Source("image", np.full((1, 1, 3), colour, np.uint8))])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert known._bytes == sum(one.nbytes for one in known._known.values()) == 20 * tokens.nbytes

"""Cache the tokens of encoded tiles, keyed by the exact bytes of the tile.

It saves work where tiles repeat: blank margins, screenshots, frames of a still video.
"""

import collections
import hashlib
import weakref
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from multipatch_jax.arguments import require_positive
from multipatch_jax.params import Params


class TileCache:
    """The tokens of tiles encoded before, for one set of params, one config and one `compute`.

    The first stream that takes a cache decides which these are; a stream with others is refused. Params are the same if
    they are the same arrays (by identity, not by value).

    A full cache drops the tile that was used least recently. A tile of 64 tokens of width 576 in float32 takes 147 kB.

    Attributes:
      max_tiles: the most tiles kept.
      hits: tiles that a stream did not encode: they were kept here, or an equal tile was already in the stream.
      misses: tiles that a stream encoded.
    """

    def __init__(self, max_tiles: int = 4096):
        self.max_tiles = require_positive("max_tiles", max_tiles, "tiles")
        self.hits = 0
        self.misses = 0
        self._tokens: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()
        self._params: list[weakref.ref] = []
        self._settings: Any = None

    def claim(self, params: Params, settings: Any) -> None:
        """Say whose tokens the cache is to hold, before any are read or stored.

        Args:
          params: the params that encode the tiles; no reference to them is kept.
          settings: all else that the tokens depend on, to be compared by value.

        Raises:
          ValueError: the cache holds the tokens of other params or settings.
        """
        leaves = jax.tree.leaves(params)
        if not self._params:
            self._params, self._settings = [weakref.ref(leaf) for leaf in leaves], settings
        same = len(leaves) == len(self._params) and all(
            ref() is leaf for ref, leaf in zip(self._params, leaves, strict=True)
        )
        if not same or settings != self._settings:
            changed = "a config or compute that differs" if same else "other params"
            raise ValueError(
                f"A TileCache holds the tokens of one model, got {changed} from those of its first stream: "
                f"make a new TileCache for each."
            )

    @staticmethod
    def key(tile: UInt8[np.ndarray, "M M 3"]) -> bytes:
        """Return a 256-bit digest of the tile's bytes; tiles of one size with the same digest are taken to be equal."""
        return hashlib.blake2b(tile.tobytes(), digest_size=32).digest()

    def get(self, key: bytes) -> Float[np.ndarray, "T D"] | None:
        """Return the tokens stored under `key`, or None; they count as used just now."""
        tokens = self._tokens.get(key)
        if tokens is not None:
            self._tokens.move_to_end(key)
        return tokens

    def put(self, key: bytes, tokens: Float[np.ndarray, "T D"]) -> None:
        """Store a copy of `tokens` under `key`."""
        self._tokens[key] = tokens.copy()  # a view would keep the whole encoded chunk in memory
        if len(self._tokens) > self.max_tiles:
            self._tokens.popitem(last=False)

    @property
    def hit_rate(self) -> float:
        """Hits as a share of all tiles, 0 to 1."""
        return self.hits / max(self.hits + self.misses, 1)

"""Cache the tokens of encoded tiles, keyed by the exact bytes of the tile.

It saves work where tiles repeat: blank margins, screenshots, frames of a still video.
"""

import collections
import hashlib

import numpy as np
from jaxtyping import Float, UInt8

from multipatch_jax.arguments import require_positive


class TileCache:
    """The tokens of tiles encoded before, for one set of params, one config and one `compute`.

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

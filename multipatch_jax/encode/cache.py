"""An exact, bounded memory of tiles already encoded: blank margins, screenshots, frames of a still video."""

import collections
import hashlib

import numpy as np
from jaxtyping import Float, UInt8

from multipatch_jax.arguments import require_positive


class TileCache:
    """Tokens by the bytes of their tile; the least recently used go first.

    One cache belongs to one params and config. At 64 tokens of width 576 in float32 a tile is 147 kB.
    """

    def __init__(self, max_tiles: int = 4096):
        self.max_tiles = require_positive("max_tiles", max_tiles, "tiles")
        self.hits = 0
        self.misses = 0
        self._tokens: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()

    @staticmethod
    def key(tile: UInt8[np.ndarray, "M M 3"]) -> bytes:
        """A 256-bit digest of the tile's bytes: two tiles share one only if they are equal."""
        return hashlib.blake2b(tile.tobytes(), digest_size=32).digest()

    def get(self, key: bytes) -> Float[np.ndarray, "T D"] | None:
        """The tokens of a tile seen before, or None."""
        tokens = self._tokens.get(key)
        if tokens is not None:
            self._tokens.move_to_end(key)
        return tokens

    def put(self, key: bytes, tokens: Float[np.ndarray, "T D"]) -> None:
        """Remembers a copy of `tokens`."""
        self._tokens[key] = tokens.copy()  # a slice would keep its whole chunk alive
        if len(self._tokens) > self.max_tiles:
            self._tokens.popitem(last=False)

    @property
    def hit_rate(self) -> float:
        """Share of the tiles asked for that needed no encoding."""
        return self.hits / max(self.hits + self.misses, 1)

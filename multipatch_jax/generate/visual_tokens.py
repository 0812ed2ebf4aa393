"""The visual tokens of what stands in prompts, each image encoded once while it is remembered."""

import collections
import hashlib
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import encode_images
from multipatch_jax.nn import Compute
from multipatch_jax.params import Params
from multipatch_jax.text import encode_frames

REMEMBERED = 2**27  # bytes: 50 photographs of 17 tiles, in float32, of SmolVLM-256M


class Source(NamedTuple):
    """What stands in some places of a prompt.

    Attributes:
      kind: "image", "video", or "tokens" where they are encoded already.
      content: pixels (H, W, 3), a list of frames, or tokens (number, D).
    """

    kind: Literal["image", "video", "tokens"]
    content: Any


class VisualTokens:
    """The visual tokens of images and videos, of one set of params; those that were used last are kept.

    Images with the same pixels have the same tokens, which are encoded once. Several threads may call `of`; an image
    that two of them ask for at the same time is encoded by both.
    """

    def __init__(self, params: Params, config: ModelConfig, compute: Compute):
        """Remember nothing yet.

        Args:
          params: of the tower and the connector.
          config: the model's.
          compute: how to compute.
        """
        self._params, self._how = params, {"config": config, "compute": compute}
        self._width = config.connector.text_hidden_size
        self._known: collections.OrderedDict[bytes, np.ndarray] = collections.OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # of the two attributes above

    def of(self, sources: Sequence[Source]) -> tuple[list[Float[np.ndarray, "tokens D"]], int]:
        """Return the tokens of each source, and how many images and videos had to be encoded."""
        keys = [None if source.kind == "tokens" else _digest(source) for source in sources]
        with self._lock:
            found = {key: self._known[key] for key in keys if key is not None and key in self._known}
        new = {key: one for key, one in zip(keys, sources, strict=True) if key is not None and key not in found}
        images = [content for kind, content in new.values() if kind == "image"]
        of_images = iter(encode_images(self._params, images, **self._how) if images else ())
        for key, (kind, content) in new.items():
            tokens = next(of_images) if kind == "image" else encode_frames(self._params, content, **self._how)
            found[key] = tokens.reshape(-1, self._width)
        with self._lock:
            for key, tokens in found.items():
                self._remember(key, tokens)
        return [one.content if key is None else found[key] for key, one in zip(keys, sources, strict=True)], len(new)

    def _remember(self, key: bytes, tokens: np.ndarray) -> None:
        self._bytes += 0 if key in self._known else tokens.nbytes
        self._known[key] = tokens
        self._known.move_to_end(key)
        while self._bytes > REMEMBERED:
            self._bytes -= self._known.popitem(last=False)[1].nbytes


def _digest(source: Source) -> bytes:
    """Return the SHA-256 of an image or a video; those with the same digest are taken to be equal."""
    digest = hashlib.sha256(source.kind.encode())
    for array in source.content if source.kind == "video" else [source.content]:
        digest.update(repr((array.shape, array.dtype.name)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()

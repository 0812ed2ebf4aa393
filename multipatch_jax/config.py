"""The configs that describe a model: frozen, hashable dataclasses, named and split as in Hugging Face's JSON files.

Configs are static arguments of the jitted functions, so two equal configs share one compiled program.

Published JSON files leave out values that equal the defaults of the reference's config classes (transformers 5.23).
`VisionConfig`, `ConnectorConfig`, `TextConfig` and `ModelConfig` have the same defaults. The defaults of `TilingConfig`
are SmolVLM-256M's.
"""

import dataclasses
import numbers
import reprlib
import sys
from typing import Any, NoReturn

from multipatch_jax.arguments import LARGEST_INT, require_choices
from multipatch_jax.resamplers import FILTERS, RESAMPLERS

DTYPES = ("float32", "bfloat16", "float16")
BOOL = (True, False)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # for Python, True is a 1


def _refuse(config: Any, name: str, expected: str) -> NoReturn:
    value = reprlib.repr(getattr(config, name))
    raise ValueError(f"{type(config).__name__}.{name} must be {expected}, got {value}.")


def _require_int(config: Any, *names: str, least: int = 1) -> None:
    """Check integers from `least` to `LARGEST_INT`, and store them as plain ones."""
    for name in names:
        value: Any = getattr(config, name)
        if not _is_number(value, numbers.Integral) or value < least:
            _refuse(config, name, "a positive integer" if least == 1 else f"an integer of at least {least}")
        if value > LARGEST_INT:
            _refuse(config, name, f"at most {LARGEST_INT}")
        object.__setattr__(config, name, int(value))  # the dataclasses are frozen


def _require_float(config: Any, *names: str) -> None:
    """Check positive, finite numbers, and store them as plain ones."""
    for name in names:
        value: Any = getattr(config, name)
        if not _is_number(value, numbers.Real) or not 0 < value <= sys.float_info.max:
            _refuse(config, name, "a positive, finite number")
        object.__setattr__(config, name, float(value))


def _require(config: Any, kind: type, *names: str) -> None:
    """Check booleans, texts, and configs of parts."""
    for name in names:
        if not isinstance(getattr(config, name), kind):
            _refuse(config, name, {bool: "True or False", str: "a text"}.get(kind, f"a {kind.__name__}"))


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The SigLIP vision tower: fields of `vision_config` in config.json.

    `image_size` (pixels) only sets how many positions are learned, `patches_per_side ** 2`. The side of a tile is
    `TilingConfig.tile_size`.
    """

    hidden_size: int = 1152
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        _require_int(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _require_int(self, "num_channels", "image_size", "patch_size")
        _require_float(self, "layer_norm_eps")
        _require(self, str, "hidden_act")
        require_choices(self, num_channels=(3,), hidden_act=("gelu_pytorch_tanh",))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"VisionConfig.hidden_size must be a multiple of num_attention_heads, "
                f"got {self.hidden_size} and {self.num_attention_heads}."
            )
        if self.image_size < self.patch_size:
            raise ValueError(
                f"VisionConfig.image_size must be at least patch_size, got {self.image_size} and {self.patch_size}."
            )

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of the square grid of learned positions."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """The connector; of kind "idefics3", pixel unshuffle and one linear projection to the language model's width.

    Attributes:
      scale_factor: side of the square of neighbouring patches that become one visual token.
      text_hidden_size: width of a visual token, which is that of the language model.
      kind: which connector, a name in `nn.CONNECTORS`. Hugging Face's files do not say it: theirs are "idefics3".
    """

    scale_factor: int = 2
    text_hidden_size: int = 4096
    kind: str = "idefics3"

    def __post_init__(self):
        _require_int(self, "scale_factor", "text_hidden_size")
        _require(self, str, "kind")


@dataclasses.dataclass(frozen=True)
class TilingConfig:
    """How an image becomes tiles.

    An image is resized at most three times: resize 1 brings its longer side to `longest_edge`; resize 2 stretches both
    sides to multiples of `tile_size`, and the result is cut into tiles; resize 3 squashes the whole picture into one
    tile, which is the global tile, or the only one of an image that is not split. See `image.plan_tiles`.

    `longest_edge`, `tile_size`, `do_resize`, `do_image_splitting` and `filter` come from preprocessor_config.json.
    `resampler`, `global_tile`, `upscale` and `max_tiles` are our own; their defaults do what the reference does.

    Attributes:
      longest_edge: length of the longer side after resize 1, in pixels. Above 4096, that side becomes 4096.
      tile_size: M, the side of a square tile, in pixels.
      tokens_per_tile: T, the number of visual tokens that one tile becomes. `ModelConfig` checks that it agrees with
        the patches of a tile and the connector's `scale_factor`.
      do_resize: False leaves out resize 1.
      do_image_splitting: False squashes the whole image into one tile, whatever its aspect ratio.
      resampler: the library whose resized pixels are reproduced, byte for byte: "pillow" (Pillow 13), "pillow12" (all
        earlier versions) or "torchvision".
      filter: resampling filter: "lanczos", "bicubic" or "bilinear".
      global_tile: whether an image that is split into several tiles gets the global tile after them.
      upscale: False leaves out resize 1 for an image whose longer side is at most `longest_edge`. True enlarges such an
        image, as the reference does.
      max_tiles: most tiles of an image, global tile included. For an image with more tiles, `longest_edge` is lowered,
        by `tile_size` at a time, until the limit is kept. None sets no limit.
    """

    longest_edge: int = 2048
    tile_size: int = 512
    tokens_per_tile: int = 64
    do_resize: bool = True
    do_image_splitting: bool = True
    resampler: str = "pillow"
    filter: str = "lanczos"
    global_tile: bool = True
    upscale: bool = True
    max_tiles: int | None = None

    def __post_init__(self):
        _require_int(self, "longest_edge", "tile_size", "tokens_per_tile")
        _require(self, bool, "do_resize", "do_image_splitting", "global_tile", "upscale")
        _require(self, str, "resampler", "filter")
        require_choices(self, resampler=tuple(RESAMPLERS), filter=tuple(FILTERS))
        if self.max_tiles is not None:
            _require_int(self, "max_tiles")
            if not self.do_resize:
                raise ValueError("TilingConfig.max_tiles works by lowering longest_edge, so it needs do_resize=True.")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Llama 3's rotary positions for long texts: fields of `rope_scaling` in config.json. `nn/rotary.py` uses them."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    rope_type: str = "llama3"

    def __post_init__(self):
        require_choices(self, rope_type=("llama3",))
        _require_float(self, "factor", "low_freq_factor", "high_freq_factor")
        _require_int(self, "original_max_position_embeddings")
        if self.high_freq_factor <= self.low_freq_factor:
            _refuse(self, "high_freq_factor", f"above low_freq_factor, {self.low_freq_factor}")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model, a Llama: fields of `text_config` in config.json."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    vocab_size: int = 32000
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeConfig | None = None
    hidden_act: str = "silu"
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self):
        _require_int(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _require_int(self, "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings")
        _require_float(self, "rms_norm_eps", "rope_theta")
        _require(self, bool, "tie_word_embeddings")
        _require(self, str, "hidden_act")
        require_choices(self, hidden_act=("silu",))
        if self.rope_scaling is not None:
            _require(self, RopeConfig, "rope_scaling")
        if self.head_dim % 2:
            _refuse(self, "head_dim", "an even number, because rotary positions turn pairs of channels")
        if self.pad_token_id is not None:
            _require_int(self, "pad_token_id", least=0)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"TextConfig.num_attention_heads must be a multiple of num_key_value_heads, "
                f"got {self.num_attention_heads} and {self.num_key_value_heads}."
            )


_SECTIONS = {"vision": VisionConfig, "connector": ConnectorConfig, "tiling": TilingConfig, "text": TextConfig}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model of the SmolVLM / Idefics3 family is. `nn.Compute` says how it is computed.

    Attributes:
      text: config of its language model, or None if that is unknown or not wanted.
      image_token_id: id of the `<image>` token. Visual tokens replace the embeddings of these tokens in the prompt.
      model_type: "idefics3" or "smolvlm", as in config.json.
      embedding_size: R, the width of the vectors of a ColIdefics3 retriever. None for a model that generates text.
    """

    vision: VisionConfig
    connector: ConnectorConfig
    tiling: TilingConfig
    text: TextConfig | None = None
    image_token_id: int = 128257
    model_type: str = "idefics3"
    embedding_size: int | None = None

    def __post_init__(self):
        for name, kind in _SECTIONS.items():
            if name != "text" or self.text is not None:
                _require(self, kind, name)
        _require_int(self, "image_token_id", least=0)
        _require(self, str, "model_type")
        require_choices(self, model_type=("idefics3", "smolvlm"))
        if self.embedding_size is not None:
            _require_int(self, "embedding_size")
        grid, scale = self.tiling.tile_size // self.vision.patch_size, self.connector.scale_factor
        if grid == 0 or grid % scale:
            raise ValueError(
                f"A tile of {self.tiling.tile_size} pixels a side has {grid} patches of {self.vision.patch_size} "
                f"pixels along a side, which must be a positive multiple of the connector's scale_factor {scale}."
            )
        if self.tiling.tokens_per_tile != (grid // scale) ** 2:
            raise ValueError(
                f"TilingConfig.tokens_per_tile must be {(grid // scale) ** 2} for {grid} x {grid} patches and "
                f"scale_factor {scale}, got {self.tiling.tokens_per_tile}."
            )
        if self.text is not None and self.text.hidden_size != self.connector.text_hidden_size:
            raise ValueError(
                f"The connector's text_hidden_size must be the text model's hidden_size, "
                f"got {self.connector.text_hidden_size} and {self.text.hidden_size}."
            )


def config_from_dict(raw: dict[str, Any]) -> ModelConfig:
    """Build a `ModelConfig` from nested dicts: the inverse of `dataclasses.asdict`.

    Settings of the computation, which files of earlier versions hold, are ignored.

    Raises:
      ValueError: a field is unknown, missing or has a value that is not allowed.
    """
    # Earlier versions saved with a model how it was computed; `nn.Compute` has that now, and no file.
    not_saved = ("dtype", "attention", "precision", "remat")
    if not isinstance(raw, dict):
        raise ValueError(f"Not a config that this version wrote: expected an object, got {reprlib.repr(raw)}.")
    fields: dict[str, Any] = {name: value for name, value in raw.items() if name not in not_saved}
    try:
        text = fields.get("text")
        if isinstance(text, dict) and isinstance(text.get("rope_scaling"), dict):
            fields["text"] = text | {"rope_scaling": RopeConfig(**text["rope_scaling"])}
        fields |= {key: cls(**fields[key]) for key, cls in _SECTIONS.items() if fields.get(key) is not None}
        return ModelConfig(**fields)
    except TypeError as error:
        raise ValueError(f"Not a config that this version wrote: {error}.") from None

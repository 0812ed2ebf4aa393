"""What a model is: frozen, hashable dataclasses.

They are static arguments of every jitted function, so two equal configs share one compiled program. Defaults are the
reference's class defaults (transformers 5.23), which published JSON files leave out.
"""

import dataclasses
from typing import Any

from multipatch_jax.arguments import require_positive

RESAMPLERS = ("pillow", "pillow12", "torchvision")
FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's codes, as in preprocessor_config.json
DTYPES = ("float32", "bfloat16", "float16")


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        require_positive(f"{type(config).__name__}.{name}", getattr(config, name))


def _require_choice(config: Any, name: str, choices: tuple) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{type(config).__name__}.{name} must be one of {choices}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower (`vision_config`)."""

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
        _require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _require_positive(self, "image_size", "patch_size")
        _require_choice(self, "num_channels", (3,))
        _require_choice(self, "hidden_act", ("gelu_pytorch_tanh",))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"VisionConfig.hidden_size must be a multiple of num_attention_heads, "
                f"got {self.hidden_size} and {self.num_attention_heads}."
            )

    @property
    def patches_per_side(self) -> int:
        """Side n of the grid of learned positions."""
        return self.image_size // self.patch_size

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class ConnectorConfig:
    """Pixel unshuffle by `scale_factor`, then one projection to the text model's width."""

    scale_factor: int = 2
    text_hidden_size: int = 4096

    def __post_init__(self):
        _require_positive(self, "scale_factor", "text_hidden_size")


@dataclasses.dataclass(frozen=True)
class TilingConfig:
    """How an image becomes tiles (`preprocessor_config.json`, and two policies of ours).

    Attributes:
      longest_edge: pixels; resize 1 brings the longer side here.
      tile_size: pixels; side M of a square tile.
      tokens_per_tile: rows of visual tokens that one tile becomes.
      do_resize: whether resize 1 happens. do_image_splitting: False squashes the image into one tile.
      resampler: whose pixels, to the byte: "pillow" (Pillow 13), "pillow12" (all before) or "torchvision".
      filter: "lanczos", "bicubic" or "bilinear".
      global_tile: whether a split image is followed by the whole picture as one more tile.
      upscale: False leaves images alone in resize 1 whose longer side is at most `longest_edge`.
      max_tiles: lowers `longest_edge` by one `tile_size` at a time until the tiles, global one included, fit.
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
        _require_positive(self, "longest_edge", "tile_size", "tokens_per_tile")
        for name in ("do_resize", "do_image_splitting", "global_tile", "upscale"):
            _require_choice(self, name, (True, False))
        _require_choice(self, "resampler", RESAMPLERS)
        _require_choice(self, "filter", tuple(FILTERS.values()))
        if self.max_tiles is not None:
            _require_positive(self, "max_tiles")
            if not self.do_resize:
                raise ValueError("TilingConfig.max_tiles works by lowering longest_edge, so it needs do_resize=True.")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The language model beside us (`text_config`, Llama): its shapes, carried for packing and round trips."""

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
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self):
        _require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        _require_positive(self, "num_key_value_heads", "head_dim", "vocab_size")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One member of the family.

    Attributes:
      vision, connector, tiling, text: its parts; `text` is None when nothing is known of the language model.
      image_token_id: the `<image>` token whose places the visual tokens take.
      model_type: "idefics3" or "smolvlm", as in config.json.
      embedding_size: width of the vectors of a ColIdefics3 retriever, None for a model that generates text.
      dtype: computation dtype by name; None computes in the dtype of the params.
      attention: "plain", "blocked" (CPU), "native" (CPU, float32: the whole encoder in compiled code of ours),
        "pallas_tpu", "cudnn" (CUDA, 16 bits), or "auto" for what suits the backend.
      precision: matmul precision of float32 computation; lower dtypes have but one, and the "native" encoder has only
        the exact one.
      remat: whether a backward pass makes a layer's activations again, rather than keep those of all layers.
    """

    vision: VisionConfig
    connector: ConnectorConfig
    tiling: TilingConfig
    text: TextConfig | None = None
    image_token_id: int = 128257
    model_type: str = "idefics3"
    embedding_size: int | None = None
    dtype: str | None = None
    attention: str = "auto"
    precision: str = "highest"
    remat: bool = False

    def __post_init__(self):
        _require_choice(self, "dtype", (None, *DTYPES))
        _require_choice(self, "attention", ("auto", "plain", "blocked", "native", "pallas_tpu", "cudnn"))
        _require_choice(self, "precision", ("default", "high", "highest"))
        _require_choice(self, "model_type", ("idefics3", "smolvlm"))
        _require_choice(self, "remat", (True, False))
        if self.embedding_size is not None:
            _require_positive(self, "embedding_size")
        grid, scale = self.tiling.tile_size // self.vision.patch_size, self.connector.scale_factor
        if grid == 0 or grid % scale:
            raise ValueError(
                f"A tile of {self.tiling.tile_size} pixels has {grid} patches of {self.vision.patch_size} a side, "
                f"which must be a positive multiple of the connector's scale_factor {scale}."
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
    """The inverse of `dataclasses.asdict`."""
    parts = {"vision": VisionConfig, "connector": ConnectorConfig, "tiling": TilingConfig, "text": TextConfig}
    fields: dict[str, Any] = dict(raw)
    try:
        fields |= {key: cls(**fields[key]) for key, cls in parts.items() if fields.get(key) is not None}
        return ModelConfig(**fields)
    except TypeError as error:
        raise ValueError(f"Not a config that this version wrote: {error}.") from None

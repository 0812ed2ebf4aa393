"""Prepare videos for SmolVLM2: choose frames, expand `<video>` in the prompt, and encode the frames."""

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from multipatch_jax.arguments import require_each, require_integer, require_number, require_positive, require_type
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import encode_images
from multipatch_jax.image import MAX_IMAGE_SIZE
from multipatch_jax.nn import Compute
from multipatch_jax.params import Params
from multipatch_jax.text.prompt import one_tile_markers, replace_each

VIDEO = "<video>"
MAX_SECONDS = 10**9  # 31 years; far more cannot be written as hours, minutes and seconds
_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclasses.dataclass(frozen=True)
class VideoPlan:
    """The frames chosen from one video.

    Attributes:
      indices: of the chosen frames, counted from 0, ascending.
      fps: frames per second of the video itself.
      duration: of the whole video, in seconds.
    """

    indices: tuple[int, ...]
    fps: float
    duration: float

    def __post_init__(self):
        require_type("VideoPlan.indices", self.indices, tuple)
        for index in self.indices:
            require_integer("An index of a VideoPlan", index, 0)
        require_number("VideoPlan.fps", self.fps, above=True)
        require_number("VideoPlan.duration", self.duration)
        if max(self.duration, *(index / self.fps for index in self.indices[-1:]), 0) > MAX_SECONDS:
            raise ValueError(
                f"A video must not be longer than {MAX_SECONDS} seconds, got fps {self.fps} and duration "
                f"{self.duration}."
            )


def sample_frames(
    num_frames: int, fps: float, *, target_fps: float = 1, max_frames: int = 64, skip_seconds: float = 1
) -> VideoPlan:
    """Choose the frames that the reference chooses (`SmolVLMVideoProcessor.sample_frames`, transformers 5.23).

    The frames are spread evenly; their number is the duration times `target_fps`, rounded, from 1 to `max_frames`.

    Args:
      num_frames: of the video.
      fps: frames per second of the video.
      target_fps: frames to choose per second, as in the checkpoint's `video_sampling`.
      max_frames: the most frames to choose, as in the checkpoint's `video_sampling`.
      skip_seconds: seconds to leave out at each end, if the rest is longer than `max_frames * target_fps` seconds.

    Raises:
      ValueError: the video has no frames, a rate or limit is not positive, or `skip_seconds` is negative.
    """
    num_frames = require_positive("num_frames", num_frames, "frames")
    max_frames = require_positive("max_frames", max_frames, "frames")
    require_number("fps", fps, above=True)
    require_number("target_fps", target_fps, above=True)
    require_number("skip_seconds", skip_seconds)
    duration = num_frames / fps
    if not duration <= MAX_SECONDS:
        raise ValueError(f"A video must not be longer than {MAX_SECONDS} seconds, got {num_frames} frames at {fps}.")
    count = max(round(min(target_fps * duration, max_frames)), 1)
    first, last = 0, num_frames - 1
    # The reference compares these seconds with this number of frames, although the units differ.
    if skip_seconds > 0 and duration - 2 * skip_seconds > max_frames * target_fps:
        first, last = int(skip_seconds * fps), min(int(num_frames - skip_seconds * fps), last)
        if first >= last:
            first, last = 0, num_frames - 1
    indices = np.unique(np.linspace(first, last, count, dtype=int))
    return VideoPlan(tuple(indices.tolist()), fps, duration)


def _in_words(number: int) -> str:
    """Spell a number from 0 to 999,999 in British English, as num2words does."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % unit
    words = f"{_in_words(number // unit)} {name}"
    return words + ((" and " if rest < 100 else ", ") + _in_words(rest) if rest else "")


def expand_video_prompt(text: str, videos: Sequence[VideoPlan], config: ModelConfig) -> str:
    """Replace each `<video>` of a text by an introduction and its frames, as the reference's `SmolVLMProcessor` does.

    A frame is written as its time in the video, followed by the markers and `<image>` tokens of one tile. For a text
    that has images too, call `expand_prompt` first, because it counts every `<image>` in the text.

    Args:
      text: with one `<video>` for each video.
      videos: one plan for each video, in the order of the text's `<video>`.
      config: the model's.

    Raises:
      ValueError: the numbers of `<video>` and videos differ, or a video has no frames.
    """
    require_type("text", text, str)
    require_type("config", config, ModelConfig)
    require_each("videos", videos, VideoPlan)
    return replace_each(text, VIDEO, [_introduced_frames(video, config) for video in videos], "video")


def _introduced_frames(video: VideoPlan, config: ModelConfig) -> str:
    """Return what the `<video>` of a video is replaced by."""
    if not video.indices:
        raise ValueError("A video must have at least one frame, got none.")
    count, duration = _in_words(len(video.indices)), datetime.timedelta(seconds=int(video.duration))
    frames = f"You are provided the following series of {count} frames from a {duration} [H:MM:SS] video.\n"
    for index in video.indices:
        minutes, seconds = divmod(index / video.fps, 60)
        frames += f"\nFrame from {int(minutes):02d}:{int(seconds):02d}:{one_tile_markers(config)}"
    return frames + "\n\n"


def frame_config(config: ModelConfig, video_size: int | None = None) -> ModelConfig:
    """Return the config with which the frames of videos are encoded: that of a model whose images are never split.

    Args:
      config: the model's. The tiling's options of resize 1, splitting and resampler are replaced.
      video_size: as in `encode_frames`.

    Raises:
      ValueError: an argument does not fit.
    """
    require_type("config", config, ModelConfig)
    side = config.tiling.tile_size if video_size is None else require_positive("video_size", video_size, "pixels")
    tiling = dataclasses.replace(
        config.tiling,
        longest_edge=min(side, MAX_IMAGE_SIZE),
        do_resize=True,
        do_image_splitting=False,
        upscale=True,
        max_tiles=None,
        resampler="torchvision",  # the only backend that the reference has for videos
    )
    return dataclasses.replace(config, tiling=tiling)


def encode_frames(
    params: Params,
    frames: Iterable[Any],
    *,
    config: ModelConfig,
    compute: Compute = Compute(),
    video_size: int | None = None,
    batch_size: int | None = None,
) -> Float[np.ndarray, "frames T D"]:
    """Encode a video's frames as visual tokens, one tile for each frame.

    A frame is resized so that its longer side is `video_size`, and then squashed to a tile; it is never split. All
    resizing is torchvision's, as in the reference. The frames are one stream of `encode_images`, whose programs serve
    any number of frames.

    Args:
      params: with "vision_model" and "connector".
      frames: an iterable of anything that `load_image` takes, such as an array (frames, H, W, 3).
      config: the model's, of which `frame_config` makes that of a video's frames.
      compute: how to compute.
      video_size: pixels of the longer side after the first resize (the checkpoint's `video_sampling.video_size`). None
        is the tile's side. A number above 4096 counts as 4096.
      batch_size: most tiles in flight on a device; None chooses by backend (`encode.tiles_in_flight`).

    Returns:
      (frames, T, D), which `pack` takes.

    Raises:
      ValueError: there are no frames, or an argument does not fit.
      ImageError, FileNotFoundError: as `load_image`, with the frame's index.
    """
    config = frame_config(config, video_size)
    tokens = encode_images(params, frames, config=config, compute=compute, batch_size=batch_size)
    if not tokens:
        raise ValueError("A video must have at least one frame, got none.")
    return np.stack(tokens)

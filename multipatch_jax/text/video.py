"""SmolVLM2's videos: which frames are looked at, what the prompt says of them, and their visual tokens."""

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from multipatch_jax.config import ModelConfig
from multipatch_jax.encode import encode_images
from multipatch_jax.image import MAX_IMAGE_SIZE
from multipatch_jax.params import Params
from multipatch_jax.text.prompt import one_tile_markers

VIDEO = "<video>"
_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclasses.dataclass(frozen=True)
class VideoPlan:
    """Which frames of one video are looked at.

    Attributes:
      indices: of the frames, from 0, ascending.
      fps: frames a second of the video itself. duration: seconds, of the whole video.
    """

    indices: tuple[int, ...]
    fps: float
    duration: float


def sample_frames(
    num_frames: int, fps: float, *, target_fps: float = 1, max_frames: int = 64, skip_seconds: float = 1
) -> VideoPlan:
    """The frames that the reference looks at (`SmolVLMVideoProcessor.sample_frames`, transformers 5.23).

    Args:
      num_frames: of the video. fps: its frames a second.
      target_fps: frames to take a second. max_frames: the most to take. Both as in the checkpoints' `video_sampling`.
      skip_seconds: left out at both ends of a video whose rest is longer than `max_frames * target_fps` seconds.

    Raises:
      ValueError: a video without frames, or a rate or limit that is not positive.
    """
    if num_frames < 1:
        raise ValueError(f"A video must have at least one frame, got {num_frames}.")
    if not (fps > 0 and target_fps > 0 and max_frames > 0 and skip_seconds >= 0):
        raise ValueError(
            f"fps, target_fps and max_frames must be positive and skip_seconds not negative, "
            f"got {fps}, {target_fps}, {max_frames} and {skip_seconds}."
        )
    duration = num_frames / fps
    count = max(min(round(target_fps * duration), max_frames), 1)
    first, last = 0, num_frames - 1
    if skip_seconds > 0 and duration - 2 * skip_seconds > max_frames * target_fps:  # seconds to frames, as they have it
        first, last = int(skip_seconds * fps), min(int(num_frames - skip_seconds * fps), last)
        if first >= last:
            first, last = 0, num_frames - 1
    indices = np.unique(np.linspace(first, last, count, dtype=int))
    return VideoPlan(tuple(indices.tolist()), fps, duration)


def _in_words(number: int) -> str:
    """A number below a million in British English, as num2words spells it."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10 - 2] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % unit
    words = f"{_in_words(number // unit)} {name}"
    return words + ((" and " if rest < 100 else ", ") + _in_words(rest) if rest else "")


def expand_video_prompt(text: str, videos: Sequence[VideoPlan], config: ModelConfig) -> str:
    """The text with each `<video>` replaced by an intro and its frames, each with its time and the markers of one tile.

    It is what SmolVLMProcessor writes. For a text with images too, call `expand_prompt` first.

    Raises:
      ValueError: not as many videos as places, or a video without frames.
    """
    parts = text.split(VIDEO)
    if len(parts) - 1 != len(videos):
        raise ValueError(
            f"The text must have one {VIDEO} for each video, got {len(parts) - 1} {VIDEO} and {len(videos)} videos."
        )
    expanded = parts[0]
    for video, part in zip(videos, parts[1:], strict=True):
        if not video.indices:
            raise ValueError("A video must have at least one frame, got none.")
        duration = datetime.timedelta(seconds=int(video.duration))
        expanded += (
            f"You are provided the following series of {_in_words(len(video.indices))} frames from a {duration} "
        )
        expanded += "[H:MM:SS] video.\n"
        for index in video.indices:
            minutes, seconds = divmod(index / video.fps, 60)
            expanded += f"\nFrame from {int(minutes):02d}:{int(seconds):02d}:{one_tile_markers(config)}"
        expanded += "\n\n" + part
    return expanded


def encode_frames(
    params: Params,
    frames: Iterable[Any],
    *,
    config: ModelConfig,
    video_size: int | None = None,
    batch_size: int | None = None,
) -> Float[np.ndarray, "F T D"]:
    """Visual tokens of a video's frames, one tile each: resized to `video_size` and then squashed, never split.

    The programs are those of `encode_images`, whatever the number of frames.

    Args:
      params: with "vision_model" and "connector".
      frames: whatever `load_image` takes, each; an array (F, H, W, 3) is a video too.
      video_size: pixels of the longer side (the checkpoint's `video_sampling.video_size`); None is the tile's side.
      batch_size: tiles in flight; None is 1 on a CPU, 8 on a TPU and 17 on a GPU.

    Returns:
      (F, tokens_per_tile, D_text), ready for `pack`.

    Raises:
      ValueError: no frames. ImageError, FileNotFoundError: as `load_image`, with the frame's index.
    """
    tiling = dataclasses.replace(
        config.tiling,
        longest_edge=min(config.tiling.tile_size if video_size is None else video_size, MAX_IMAGE_SIZE),
        do_resize=True,
        do_image_splitting=False,
        upscale=True,
        max_tiles=None,
        resampler="torchvision",  # the only one that the reference has for videos
    )
    frames = list(frames)
    if not frames:
        raise ValueError("A video must have at least one frame, got none.")
    config = dataclasses.replace(config, tiling=tiling)
    return np.stack(encode_images(params, frames, config=config, batch_size=batch_size))

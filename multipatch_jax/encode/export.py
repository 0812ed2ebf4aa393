"""Export the encoder of tiles as `jax.export` programs, one for each platform, with the params beside them.

The exported folder can be run without this package. It is a program: run only those of people that you trust.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Float, UInt8
from tqdm import tqdm

from multipatch_jax.arguments import check_array
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import Execution, prepare_execution
from multipatch_jax.encode.export_files import (
    VERSION,
    checked_file,
    read_manifest,
    read_params,
    write_manifest,
    write_params,
)
from multipatch_jax.encode.jit import compiler_options
from multipatch_jax.encode.programs import trace_encode
from multipatch_jax.files import new_folder, require_path
from multipatch_jax.nn import KERNELS, Compute
from multipatch_jax.params import Params, flatten, unflatten

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms that programs can be exported for."""


def export_encoder(
    path: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    compute: Compute = Compute(),
    platforms: str | Iterable[str] = PLATFORMS,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write a folder with a `jax.export` program of `encode_tiles` for each platform.

    This machine needs no device of those platforms. The folder holds:

    | file | content |
    |---|---|
    | `manifest.json` | config, dtype, versions, shapes of the params, the programs' descriptions, files' SHA-256 |
    | `params.npz` | the params by path, bfloat16 as its 16 bits in uint16 |
    | `cpu.jax_export`, ... | one program for each platform |

    A program takes the params as a flat dict, path -> array, and uint8 tiles, whose number must be a multiple of the
    program's batch size. Reading and running it needs only jax and flatbuffers (`load_exported` does both).

    On CUDA in 16 bits, "auto" attention becomes cuDNN's kernel if the CUDA wheels are installed here, and "plain"
    otherwise; no GPU is needed. A program with cuDNN's kernel can be relied on only in the version of jax that wrote
    it. JAX guarantees that its versions of the next six months can read all others.

    Args:
      path: the folder to write; it must not exist yet.
      config: the model's.
      params: with "vision_model" and "connector".
      compute: how the programs compute. The "native" encoder is never exported.
      platforms: one or some of "cpu", "cuda" and "tpu".
      batch_size: most tiles in flight on a device; None chooses by platform (`encode.tiles_in_flight`).
      progress: whether to show a bar that counts programs.

    Returns:
      The content of `manifest.json`.

    Raises:
      ValueError: `params` are not arrays of this config, a platform is unknown, `batch_size` is not a positive integer,
        or a setting of `compute` cannot be had on one of them: "native" code, or "cudnn" without the CUDA wheels.
      FileExistsError: `path` exists.
      ImportError: flatbuffers is not installed.
    """
    path, platforms = require_path("path", path), _check_platforms(platforms)
    _require_flatbuffers()
    settings = {
        platform: prepare_execution(params, config, compute, batch_size, platform=platform) for platform in platforms
    }
    params, first = next(iter(settings.values()))
    arrays = flatten(params)
    for name, x in arrays.items():
        if not isinstance(x, (np.ndarray, jax.Array)) or isinstance(x, Tracer):
            raise ValueError(f"params must be arrays, got {name} of type {type(x).__name__}.")
    manifest: dict[str, Any] = {
        "multipatch_jax_export": VERSION,
        "config": dataclasses.asdict(config),
        "dtype": first.compute.dtype,
        "versions": {name: importlib.import_module(name).__version__ for name in ("multipatch_jax", "jax", "jaxlib")},
        "params": {name: {"shape": x.shape, "dtype": x.dtype.name} for name, x in arrays.items()},
        "platforms": {},
    }
    with new_folder(path) as folder:
        bar = tqdm(settings.items(), desc="exporting", unit=" programs", disable=not progress)
        for platform, (_, execution) in bar:
            exported = _export(execution, arrays, platform)
            file = f"{platform}.jax_export"
            (folder / file).write_bytes(exported.serialize())
            manifest["platforms"][platform] = {
                "file": file,
                "batch_size": execution.batch_size,
                "attention": execution.compute.attention,
                "tiles": str(exported.in_avals[-1]),
                "tokens": str(exported.out_avals[0]),
            }
        write_params(folder, {name: np.asarray(x) for name, x in arrays.items()})
        write_manifest(folder, manifest)
    return manifest


def load_exported(
    path: str | Path, platform: str | None = None
) -> Callable[[UInt8[np.ndarray, "N M M 3"]], Float[jax.Array, "N T D"]]:
    """Load a folder that `export_encoder` wrote, as a function of tiles.

    The folder holds a program. Its digests show damage, but anybody can write them: load only what comes from people
    that you trust.

    Args:
      path: the folder.
      platform: the platform whose program is loaded; None is this machine's default backend.

    Returns:
      A function that encodes any positive number of uint8 tiles (N, M, M, 3) as visual tokens (N, T, D).

    Raises:
      FileNotFoundError: the folder does not exist, or holds no program for this platform.
      ValueError: a file is missing, or was changed or damaged since it was exported.
      ImportError: flatbuffers is not installed.
    """
    folder = require_path("path", path)
    if platform is not None and platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {', '.join(PLATFORMS)} or None, got {platform!r:.50}.")
    manifest = read_manifest(folder)
    _require_flatbuffers()
    backend = jax.default_backend()
    platform = platform or {"gpu": "cuda"}.get(backend, backend)
    if platform not in manifest["platforms"]:
        found = ", ".join(manifest["platforms"])
        raise FileNotFoundError(f"{folder} holds programs for {found}, got platform {platform}; export one for it.")
    entry, tiling = manifest["platforms"][platform], manifest["config"]["tiling"]
    file = checked_file(folder, entry["file"], manifest)
    options = compiler_options(entry["attention"], tiling["tile_size"], manifest["config"]["vision"]["patch_size"])
    try:
        program = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call, compiler_options=options or None)
    except Exception as error:  # whatever jax and flatbuffers raise
        raise ValueError(f"{file} is not a program that this version of jax can read ({error!s:.200}).") from error
    params = {name: jax.device_put(x) for name, x in read_params(folder, manifest).items()}

    def encode(tiles: UInt8[np.ndarray, "N M M 3"]) -> Float[jax.Array, "N T D"]:
        check_array("tiles", tiles, ("N", tiling["tile_size"], tiling["tile_size"], 3), np.uint8)
        padding = -len(tiles) % entry["batch_size"]
        padded = np.concatenate([np.asarray(tiles), np.zeros((padding, *tiles.shape[1:]), np.uint8)])
        return program(params, padded)[: len(tiles)]

    return encode


def _export(execution: Execution, arrays: dict[str, Any], platform: str) -> jax.export.Exported:
    """Export one program (flat params, tiles) -> tokens, for any multiple of `batch_size` tiles."""
    batch_size, side = execution.batch_size, execution.config.tiling.tile_size

    def encode(params, tiles):
        batches = tiles.reshape(-1, batch_size, *tiles.shape[1:])
        nested, on_one_device = unflatten(params), dataclasses.replace(execution, mesh=None)
        tokens = jax.lax.map(lambda batch: trace_encode(nested, batch, on_one_device), batches)
        return tokens.reshape(-1, *tokens.shape[2:])

    shape = jax.export.symbolic_shape(f"{batch_size}*n, {side}, {side}, 3")
    tiles = jax.ShapeDtypeStruct(shape, np.uint8)
    params = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
    # JAX does not guarantee that its other versions can run these calls, and refuses to export them by default.
    calls = KERNELS[execution.compute.attention].unstable_calls
    allowed = [jax.export.DisabledSafetyCheck.custom_call(call) for call in calls]
    return jax.export.export(jax.jit(encode), platforms=[platform], disabled_checks=allowed)(params, tiles)


def _check_platforms(platforms: str | Iterable[str]) -> list[str]:
    """Return the names of platforms, each once."""
    if isinstance(platforms, str) or not isinstance(platforms, Iterable):
        platforms = [platforms]
    found = list(platforms)
    unknown = [platform for platform in found if platform not in PLATFORMS]
    if unknown or not found:
        names = f"{', '.join(map(str, unknown)) or 'none':.200}"
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {names}.")
    return list(dict.fromkeys(found))


def _require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError('jax.export\'s files need flatbuffers: pip install "multipatch_jax[export]".')

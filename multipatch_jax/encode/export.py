"""Compiled-for-later programs of tiles -> tokens, one per platform, with the params beside them: no package needed."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from multipatch_jax.arguments import check_array
from multipatch_jax.config import ModelConfig
from multipatch_jax.encode.execution import model_params, resolve_config, tiles_in_flight
from multipatch_jax.encode.tiles import trace_encode
from multipatch_jax.files import new_folder, read_json, write_json
from multipatch_jax.nn import choose_kernel
from multipatch_jax.params import Params, flatten, unflatten

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST, PARAMS = "manifest.json", "params.npz"
MANIFEST, PARAMS = "manifest.json", "params.npz"


def export_encoder(
    path: str | Path,
    config: ModelConfig,
    params: Params,
    *,
    platforms: Sequence[str] = PLATFORMS,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Writes a folder with a `jax.export` program of `encode_tiles` for each platform; none of them need be there.

    The folder holds `manifest.json` (config, versions, shapes, and what each platform's program is), `params.npz`
    (arrays by path, bfloat16 as its 16 bits) and a file for each platform. A program takes the params as a flat dict,
    path -> array, and uint8 tiles, any multiple of its batch size; whoever reads it needs jax and flatbuffers alone.

    Args:
      platforms: of "cpu", "cuda" and "tpu".
      batch_size: tiles in flight; None is 1 on a CPU, 8 on a TPU and 17 on a GPU.

    Returns:
      The manifest. For CUDA in 16 bits "auto" attention is cuDNN's kernel where the CUDA wheels are installed (no GPU
      is needed), and "plain" elsewhere. A program with cuDNN's is to be read by the jax that wrote it; JAX promises the
      others to its versions of the next six months.

    Raises:
      ValueError: `params` are not of this config, or no such platform. FileExistsError: `path` exists.
      ImportError: flatbuffers is not installed.
    """
    unknown = sorted(set(platforms) - set(PLATFORMS))
    if unknown or not platforms:
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {', '.join(unknown) or 'none'}.")
    _require_flatbuffers()
    arrays = flatten(model_params(params))
    manifest: dict[str, Any] = {
        "multipatch_jax_export": 1,
        "config": dataclasses.asdict(config),
        "dtype": resolve_config(config, params).dtype,
        "versions": {name: importlib.import_module(name).__version__ for name in ("multipatch_jax", "jax", "jaxlib")},
        "params": {name: {"shape": x.shape, "dtype": x.dtype.name} for name, x in arrays.items()},
        "platforms": {},
    }
    with new_folder(Path(path)) as folder:
        for platform in dict.fromkeys(platforms):
            in_flight = tiles_in_flight(batch_size, platform)
            resolved = resolve_config(
                dataclasses.replace(config, attention=_attention(config, params, platform)), params
            )
            exported = _export(resolved, arrays, platform, in_flight)
            file = f"{platform}.jax_export"
            (folder / file).write_bytes(exported.serialize())
            manifest["platforms"][platform] = {
                "file": file,
                "batch_size": in_flight,
                "attention": resolved.attention,
                "tiles": str(exported.in_avals[-1]),
                "tokens": str(exported.out_avals[0]),
            }
        stored: dict[str, Any] = {name: _bits(np.asarray(x)) for name, x in arrays.items()}
        np.savez(folder / PARAMS, **stored)
        write_json(folder / MANIFEST, manifest)
    return manifest


def load_exported(
    path: str | Path, platform: str | None = None
) -> Callable[[UInt8[np.ndarray, "N M M 3"]], Float[jax.Array, "N T D"]]:
    """The function that a folder of `export_encoder` holds: uint8 tiles, any number, to visual tokens.

    Args:
      platform: whose program; None is that of the machine that this runs on.

    Raises:
      FileNotFoundError: no such folder, or no program for this platform in it.
      ImportError: flatbuffers is not installed.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}, so it is not a folder that export_encoder wrote.")
    _require_flatbuffers()
    manifest = read_json(folder / MANIFEST)
    backend = jax.default_backend()
    platform = platform or {"gpu": "cuda"}.get(backend, backend)
    if platform not in manifest["platforms"]:
        found = ", ".join(manifest["platforms"])
        raise FileNotFoundError(f"{folder} holds programs for {found}, got platform {platform}; export one for it.")
    entry, tiling = manifest["platforms"][platform], manifest["config"]["tiling"]
    program = jax.jit(jax.export.deserialize(bytearray((folder / entry["file"]).read_bytes())).call)
    with np.load(folder / PARAMS) as stored:
        dtypes = {name: jnp.dtype(x["dtype"]) for name, x in manifest["params"].items()}
        params = {name: jax.device_put(stored[name].view(dtype)) for name, dtype in dtypes.items()}

    def encode(tiles: UInt8[np.ndarray, "N M M 3"]) -> Float[jax.Array, "N T D"]:
        check_array("tiles", tiles, ("N", tiling["tile_size"], tiling["tile_size"], 3), np.uint8)
        padding = -len(tiles) % entry["batch_size"]
        padded = np.concatenate([np.asarray(tiles), np.zeros((padding, *tiles.shape[1:]), np.uint8)])
        return program(params, padded)[: len(tiles)]

    return encode


def _export(config: ModelConfig, arrays: dict[str, Any], platform: str, batch_size: int) -> jax.export.Exported:
    def encode(params, tiles):
        batches = tiles.reshape(-1, batch_size, *tiles.shape[1:])
        nested = unflatten(params)
        tokens = jax.lax.map(lambda batch: trace_encode(nested, batch, config, batch_size), batches)
        return tokens.reshape(-1, *tokens.shape[2:])

    side = config.tiling.tile_size
    shape = jax.export.symbolic_shape(f"{batch_size}*n, {side}, {side}, 3")
    tiles = jax.ShapeDtypeStruct(shape, np.uint8)
    params = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
    # JAX promises nothing of this call to its later versions, so such a program is for the jax that wrote it.
    unpromised = [jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
    return jax.export.export(jax.jit(encode), platforms=[platform], disabled_checks=unpromised)(params, tiles)


def _attention(config: ModelConfig, params: Params, platform: str) -> str:
    dtype = resolve_config(config, params).dtype
    chosen = choose_kernel(config.attention, dtype, platform)
    wheels = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    if chosen != "cudnn" or wheels:
        return chosen
    if config.attention == "auto":
        return "plain"
    raise ValueError('attention="cudnn" is exported where the CUDA wheels are: pip install "multipatch_jax[cuda12]".')


def _bits(x: np.ndarray) -> np.ndarray:
    """NumPy's own files know no bfloat16."""
    return x.view(np.uint16) if x.dtype == jnp.bfloat16 else x


def _require_flatbuffers() -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError('jax.export\'s files need flatbuffers: pip install "multipatch_jax[export]".')

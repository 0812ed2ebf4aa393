"""`multipatch-jax`: encode, plan, convert, export and demo from the shell."""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import multipatch_jax as mp
from multipatch_jax import checkpoint, plots, viz, weights
from multipatch_jax.config import DTYPES
from multipatch_jax.export import PLATFORMS
from multipatch_jax.presets import SMOLVLM_256M

DEMO_MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into.")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place once the block is through, and never before."""
    _check_folder(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o644)  # mkstemp's files are private
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _encode_with_bar(params: dict[str, Any], tiles: np.ndarray, config: mp.ModelConfig, name: str) -> np.ndarray:
    """`encode_tiles` tile by tile, so that a person sees it move."""
    bar = tqdm(list(tiles), desc=name, unit=" tile", disable=None)  # disable=None: quiet where nobody looks
    return np.concatenate([np.asarray(mp.encode_tiles(params, tile[None], config=config)) for tile in bar])


def _look_at(photos: Sequence[Any], names: Sequence[str], config: mp.ModelConfig, overlay: Path | None) -> list:
    """Prints and returns each photo's plan. Pixels are not kept: photos may be many and large."""
    plans = []
    for photo, name in zip(photos, names, strict=True):
        image = mp.load_image(photo)
        plans.append(mp.plan_tiles(image.shape[0], image.shape[1], config.tiling))
        print(f"{name}: {viz.describe(plans[-1])}")
        if overlay is not None:
            with _whole(overlay) as file:
                viz.draw_tiles(image, plans[-1]).save(file)
            print(f"wrote {overlay}")
    return plans


def _write_tokens(
    photos: Sequence[Any],
    names: Sequence[str],
    plans: list,
    config: mp.ModelConfig,
    params: Any,
    out: Path,
    pca: Path | None,
    model: str,
) -> None:
    from safetensors.numpy import save_file

    tokens, entries = {}, []
    for index, (photo, name, plan) in enumerate(zip(photos, names, plans, strict=True)):
        start = time.perf_counter()
        image = mp.load_image(photo)
        tiles = mp.tile_image_host(image, config.tiling)
        encoded = _encode_with_bar(params, tiles, config, name).reshape(plan.num_tokens, -1)
        print(f"{name}: {len(encoded)} tokens of width {encoded.shape[1]}, {encoded.dtype}, ", end="")
        print(f"in {time.perf_counter() - start:.1f} s")
        key = f"tokens_{index}"
        tokens[key] = encoded
        entries.append({"key": key, "file": name, **vars(plan)})
        if pca is not None:
            with _whole(pca) as file:
                plots.plot_pca(image, encoded, plan, config).savefig(file)
            print(f"wrote {pca}")
    metadata = {"images": json.dumps(entries), "model": model, "multipatch_jax": mp.__version__}
    with _whole(out) as file:
        save_file(tokens, file, metadata=metadata)
    print(f"wrote {out}")


def _encode(args: argparse.Namespace) -> None:
    for option, path in (("--overlay", args.overlay), ("--pca", args.pca)):
        if path and len(args.photos) > 1:
            raise ValueError(f"{option} draws one photo, got {len(args.photos)}.")
        if path and path.suffix.lower() not in PICTURES:
            raise ValueError(f"{option} writes {', '.join(PICTURES)}, got {path}.")
    if args.pca:
        plots.require_matplotlib()
    for path in filter(None, (args.out, args.overlay, args.pca)):
        _check_folder(path)
    names = [str(photo) for photo in args.photos]
    folder = checkpoint.resolve(args.model)
    plans = _look_at(args.photos, names, checkpoint.read_config(folder), args.overlay)
    config, params = mp.from_pretrained(folder, dtype=args.dtype, progress=sys.stderr.isatty())
    _write_tokens(args.photos, names, plans, config, params, args.out, args.pca, args.model)


def _plan(args: argparse.Namespace) -> None:
    if args.model in mp.PRESETS:
        config = mp.PRESETS[args.model]
    elif Path(args.model).is_dir():
        config = checkpoint.read_config(Path(args.model))
    else:
        raise FileNotFoundError(f"--model must be a folder or one of {', '.join(mp.PRESETS)}, got {args.model}.")
    plan = mp.plan_tiles(args.height, args.width, config.tiling)
    print(viz.describe(plan))
    sizes = {
        "source": (plan.height, plan.width),
        "resize 1 (longest edge)": plan.resized,
        "resize 2 (whole tiles)": plan.stretched,
        "tile": (config.tiling.tile_size,) * 2,
    }
    for name, (height, width) in sizes.items():
        print(f"  {name:<24} {height:>6} x {width}")
    print(f"  {'<image> tokens':<24} {plan.num_tiles:>6} x {config.tiling.tokens_per_tile} = {plan.num_tokens}")


def _convert(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    config, params = mp.from_pretrained(args.source, dtype=args.dtype, parts=args.parts, progress=sys.stderr.isatty())
    loaded = time.perf_counter()
    mp.save_pretrained(args.destination, config, params)
    arrays = weights.flatten(params)
    dtypes = sorted({array.dtype.name for array in arrays.values()})
    tensors = sum(tensor.path in arrays for tensor in weights.tensors(config).values())
    print(f"wrote {args.destination}: {', '.join(args.parts)}")
    print(f"  tensors     {tensors:>14,} read, {len(arrays)} arrays written (layers are stacked)")
    print(f"  parameters  {weights.count(array.shape for array in arrays.values()):>14,}")
    print(f"  dtype       {', '.join(dtypes):>14}")
    print(f"  bytes       {sum(array.nbytes for array in arrays.values()):>14,}")
    print(f"  seconds     {time.perf_counter() - start:>14.1f} ({loaded - start:.1f} to read)")


def _export(args: argparse.Namespace) -> None:
    config, params = mp.from_pretrained(args.model, dtype=args.dtype, progress=sys.stderr.isatty())
    platforms = args.platform or PLATFORMS
    manifest = mp.export_encoder(args.out, config, params, platforms=platforms, batch_size=args.batch_size)
    print(f"wrote {args.out}: manifest.json, params.npz and")
    for program in manifest["platforms"].values():
        size = (args.out / program["file"]).stat().st_size
        shapes = f"{program['tiles']} -> {program['tokens']}"
        print(f"  {program['file']:<16} {shapes}, attention {program['attention']}, {size:,} bytes")
    cuda = manifest["platforms"].get("cuda", {})
    if cuda.get("attention") == "plain" and manifest["dtype"] != "float32":
        print('cuda: with the CUDA wheels here (pip install "multipatch_jax[cuda12]") it would be cuDNN\'s attention.')


def _demo(args: argparse.Namespace) -> None:
    try:
        from skimage import data
    except ImportError:
        raise ValueError('the demo\'s photograph comes with scikit-image: pip install "multipatch_jax[demo]"') from None
    plots.require_matplotlib()
    photo, names = [data.chelsea()], ["chelsea"]
    args.out.mkdir(parents=True, exist_ok=True)
    config, params, model = SMOLVLM_256M, None, "random weights"
    if not args.random_weights:
        print(f"Asking the hub for {DEMO_MODEL} ...", flush=True)
        try:
            config, params = mp.from_pretrained(DEMO_MODEL, progress=sys.stderr.isatty())
            model = DEMO_MODEL
        except FileNotFoundError:
            print("The hub cannot be reached.")
    if params is None:
        print("Using random weights (seed 0) of SmolVLM-256M's shapes: the tokens below mean nothing,")
        print("but every step is the real one.", flush=True)
        params = mp.init_params(jax.random.key(0), config)
    plans = _look_at(photo, names, config, args.out / "tiles.png")
    out = args.out / "tokens.safetensors"
    _write_tokens(photo, names, plans, config, params, out, args.out / "pca.png", model)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multipatch-jax",
        description="Any image to the visual tokens of the SmolVLM / Idefics3 family.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""a first session:
  multipatch-jax demo                                     a photograph, its tiles and tokens, into demo/
  multipatch-jax plan 3000 4000                           how many tiles and tokens a size costs
  multipatch-jax convert HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m
  multipatch-jax encode cat.jpg --model smolvlm-256m --out cat.safetensors --overlay cat-tiles.png""",
    )
    parser.add_argument("--version", action="version", version=f"multipatch_jax {mp.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    encode = command("encode", _encode, "photographs to visual tokens, written as safetensors")
    encode.add_argument("photos", nargs="+", metavar="PHOTO", type=Path, help="any file that Pillow reads")
    encode.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a converted or Hugging Face folder, or id")
    encode.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="tokens_0, tokens_1, ... and each plan in the metadata"
    )
    encode.add_argument("--overlay", type=Path, metavar="FILE.png", help="also draw the tiles on the picture")
    encode.add_argument(
        "--pca", type=Path, metavar="FILE.png", help="also draw the tokens' principal components as colours"
    )
    encode.add_argument("--dtype", choices=DTYPES, help="of the params and the tokens; the checkpoint's if left out")

    plan = command("plan", _plan, "the tiles and tokens of an image's size, touching no pixels")
    plan.add_argument("height", type=int, help="pixels")
    plan.add_argument("width", type=int, help="pixels")
    plan.add_argument(
        "--model",
        default="SmolVLM-256M-Instruct",
        metavar="NAME",
        help=f"a model's folder, or one of {', '.join(mp.PRESETS)} (default: %(default)s)",
    )

    convert = command("convert", _convert, "a Hugging Face checkpoint to a folder that loads with Orbax")
    convert.add_argument("source", metavar="DIR_OR_ID", help="a Hugging Face folder or hub id")
    convert.add_argument("destination", type=Path, help="a folder that does not exist yet")
    convert.add_argument("--dtype", choices=DTYPES, help="of the params; the checkpoint's, bit for bit, if left out")
    convert.add_argument(
        "--parts",
        nargs="+",
        choices=weights.PARTS,
        default=["vision", "connector"],
        help="what to convert (default: vision connector)",
    )

    export = command(
        "export", _export, "programs of tiles -> tokens that jax alone can run, for platforms not here too"
    )
    export.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet")
    export.add_argument("--model", required=True, metavar="DIR_OR_ID", help="a converted or Hugging Face folder, or id")
    export.add_argument(
        "--platform", action="append", choices=PLATFORMS, help="may be given several times (default: all three)"
    )
    export.add_argument(
        "--batch-size", type=int, metavar="N", help="tiles in flight (default: 1 on a CPU, 8 on a TPU, 17 on a GPU)"
    )
    export.add_argument("--dtype", choices=DTYPES, help="of the params and the tokens; the checkpoint's if left out")

    demo = command("demo", _demo, "a photograph to tokens with SmolVLM-256M, and a picture of its tiles")
    demo.add_argument("--random-weights", action="store_true", help="do not ask the hub")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when done, 2 after one line about what was wrong with the input."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"multipatch-jax {args.command}: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    return 0

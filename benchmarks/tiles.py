"""What many tiles cost beside one, the larger tower, and peak memory: `python -m benchmarks.tiles`.

Needs the `bench` extra. Random float32 params, the default precision. Seconds a tile of SmolVLM-256M's tower and
connector (SigLIP-B, 1024 patches, heads of 64) for 1, 13 and 17 tiles, and of SmolVLM-2.2B's (So400m, 729 patches,
heads of 72) for one, against the best float32 matmul rate of XLA, torch and NumPy: a process each, taking turns,
medians. Then the peak memory of a process that imports, loads the 256M from Hugging Face's layout and encodes. Prints
tables and writes benchmarks/tiles.json.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import turns
from benchmarks.cpu import CEILING, MATMUL

BASE, SO400M = "SmolVLM-256M-Instruct", "SmolVLM-Instruct"
# name: model, tiles encoded at once, and how often in a turn, so that no turn is too short to measure
CASES = {
    "SigLIP-B, 1 tile": (BASE, 1, 4),
    "SigLIP-B, 13 tiles": (BASE, 13, 1),
    "SigLIP-B, 17 tiles": (BASE, 17, 1),
    "So400m, 1 tile": (SO400M, 1, 1),
}
MEMORY = """
import json, resource, sys
import jax, numpy as np
import multipatch_jax as mp

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

jax.devices()
imported = peak()
config, params = mp.from_pretrained(sys.argv[1])
loaded = peak()
if sys.argv[2] == "photo":
    image = sys.argv[1] + "/photo.jpg"
    tokens = mp.encode_image(params, image, config=config)
else:
    tiles = np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), 512, 512, 3), np.uint8)
    tokens = mp.encode_tiles(params, tiles, config=config)
tokens.block_until_ready()
params_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"imported": imported, "loaded": loaded, "encoded": peak(), "params": params_bytes}))
"""
ENCODED = {"1 tile": "1", "17 tiles": "17", "a JPEG of 16 megapixels, 17 tiles": "photo"}


def system(name: str) -> Callable[[Path], Callable[[], object]]:
    model, num_tiles, times = CASES[name]

    def prepare(folder: Path) -> Callable[[], object]:
        import jax

        import multipatch_jax as mp

        config = mp.PRESETS[model]
        params = mp.init_params(jax.random.key(0), config)
        side = config.tiling.tile_size
        tiles = np.random.default_rng(0).integers(0, 256, (num_tiles, side, side, 3), np.uint8)

        def run() -> None:
            for _ in range(times):
                mp.encode_tiles(params, tiles, config=config).block_until_ready()

        return run

    return prepare


def flops(model: str) -> int:
    """Operations of a tile's matrix products: the tower's patches and layers, the connector's projection."""
    import multipatch_jax as mp

    vision, connector = mp.PRESETS[model].vision, mp.PRESETS[model].connector
    patches, width, inner = vision.patches_per_side**2, vision.hidden_size, vision.intermediate_size
    layer = 2 * patches * (4 * width**2 + 2 * width * inner) + 4 * patches**2 * width
    embedding = 2 * patches * 3 * vision.patch_size**2 * width
    return vision.num_hidden_layers * layer + embedding + 2 * patches * width * connector.text_hidden_size


def peak_memory() -> dict[str, dict[str, int]]:
    """Bytes: the peak of a process once it has imported, loaded and encoded, and those of the params alone."""
    make = (
        "import sys; import jax, numpy as np; from PIL import Image; import multipatch_jax as mp\n"
        "config = mp.presets.SMOLVLM_256M\n"
        "mp.export_hf(sys.argv[1], config, mp.init_params(jax.random.key(0), config))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)\n"
        "Image.fromarray(noise).resize((4000, 4000)).save(sys.argv[1] + '/photo.jpg')\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name) / "model")
        turns.run_python(make, folder)
        return {what: json.loads(turns.run_python(MEMORY, folder, argument)) for what, argument in ENCODED.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each case, up to half a minute each")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return turns.work({name: system(name) for name in CASES} | CEILING, args.worker[0], Path(args.worker[1]))
    memory = peak_memory()  # first: a process starts with its parent's peak, and this one is small yet
    times = turns.take_turns("benchmarks.tiles", [*CASES, *CEILING], turns.ROOT, args.rounds)
    report(memory, times)


def report(memory: dict[str, dict[str, int]], times: dict[str, list[float]]) -> None:
    print(f"{'peak memory, MB':<34} {'imported':>9} {'loaded':>9} {'encoded':>9} {'without params':>15}")
    for what, sizes in memory.items():
        row = [sizes[key] / 1e6 for key in ("imported", "loaded", "encoded")]
        print(f"{what:<34} {row[0]:9.0f} {row[1]:9.0f} {row[2]:9.0f} {row[2] - sizes['params'] / 1e6:15.0f}")
    for name, (_, num_tiles, repeats) in CASES.items():
        times[name] = [seconds / (num_tiles * repeats) for seconds in times[name]]
    ceiling = max(2 * MATMUL**3 / statistics.median(times[name]) for name in CEILING)
    one = next(iter(CASES))
    print(f"{'':<34} {'s a tile':>9} {'to one':>9} {'GFLOP/s':>9} {'of ceiling':>11}")
    for name, (model, _, _) in CASES.items():
        seconds, rate = statistics.median(times[name]), flops(model) / statistics.median(times[name])
        against = f"{turns.ratio(times, name, one):.2f}" if model == BASE else ""
        print(f"{name:<34} {seconds:9.2f} {against:>9} {rate / 1e9:9.0f} {rate / ceiling:11.0%}")
    packages = "jax jaxlib flax torch numpy".split()
    turns.write_record("tiles", packages, seconds=times, memory=memory)


if __name__ == "__main__":
    main()

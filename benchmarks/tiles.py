"""Measures what many tiles cost beside one, the larger tower, and the peak of memory: `python -m benchmarks.tiles`.

Needs the `bench` extra. The params are random, in float32, at the default precision. Measures the seconds a tile of
SmolVLM-256M's tower and connector (SigLIP-B, 1024 patches, heads of 64) for 1, 13 and 17 tiles, and of SmolVLM-2.2B's
(So400m, 729 patches, heads of 72) for one, and compares their rates with the best float32 matmul rate of XLA, torch and
NumPy. Each case has its own process and they take turns; medians. Also measures the peak memory of a process that
imports, loads the 256M from Hugging Face's layout and encodes. Prints tables and writes benchmarks/records/tiles.json.
"""

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.shared import ceiling, turns
from benchmarks.shared.flops import tile_flops
from benchmarks.shared.options import turns_parser
from benchmarks.shared.processes import ROOT, run_python
from benchmarks.shared.records import write_record
from benchmarks.shared.turns import System, Turn

BASE, SO400M = "SmolVLM-256M-Instruct", "SmolVLM-Instruct"
# name: model, tiles encoded at once, and how often in a turn; a turn must be long enough to measure
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


def system(name: str) -> System:
    model, num_tiles, times = CASES[name]

    def prepare(folder: Path) -> Turn:
        import jax

        import multipatch_jax as mp

        config = mp.PRESETS[model]
        params = mp.init_params(jax.random.key(0), config)
        side = config.tiling.tile_size
        tiles = np.random.default_rng(0).integers(0, 256, (num_tiles, side, side, 3), np.uint8)

        def turn() -> None:
            for _ in range(times):
                mp.encode_tiles(params, tiles, config=config).block_until_ready()

        return turn

    return prepare


def peak_memory() -> dict[str, dict[str, int]]:
    """Bytes, for each of `ENCODED`: a process's peak after the imports, the load and the encoding; and the params."""
    make = (
        "import sys; import jax, numpy as np; from PIL import Image; import multipatch_jax as mp\n"
        "config = mp.presets.SMOLVLM_256M\n"
        "mp.export_hf(sys.argv[1], config, mp.init_params(jax.random.key(0), config))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)\n"
        "Image.fromarray(noise).resize((4000, 4000)).save(sys.argv[1] + '/photo.jpg')\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = str(Path(name) / "model")
        run_python("-c", make, folder)
        return {what: json.loads(run_python("-c", MEMORY, folder, argument)) for what, argument in ENCODED.items()}


def main() -> None:
    args = turns_parser(__doc__, rounds=3, help="turns of each case, up to half a minute each").parse_args()
    if args.worker:
        return turns.work({name: system(name) for name in CASES} | ceiling.CPU, *args.worker)
    memory = peak_memory()  # first: a process's peak begins at its parent's, and this one is small yet
    times = turns.take_turns("benchmarks.tiles", [*CASES, *ceiling.CPU], ROOT, args.rounds)
    for name, (_, num_tiles, repeats) in CASES.items():
        times[name] = [seconds / (num_tiles * repeats) for seconds in times[name]]
    report(memory, times)
    write_record("tiles", "jax jaxlib flax torch numpy".split(), seconds=times, memory=memory)


def report(memory: dict[str, dict[str, int]], times: dict[str, list[float]]) -> None:
    """Prints the tables; `times` are of one tile."""
    import multipatch_jax as mp  # after the turns and the peaks

    print(f"{'peak memory, MB':<34} {'imported':>9} {'loaded':>9} {'encoded':>9} {'without params':>15}")
    for what, sizes in memory.items():
        row = [sizes[key] / 1e6 for key in ("imported", "loaded", "encoded")]
        print(f"{what:<34} {row[0]:9.0f} {row[1]:9.0f} {row[2]:9.0f} {row[2] - sizes['params'] / 1e6:15.0f}")
    best = max(ceiling.rate(ceiling.CPU_SIZE, statistics.median(times[name])) for name in ceiling.CPU)
    one = next(iter(CASES))
    print(f"{'':<34} {'s a tile':>9} {'to one':>9} {'GFLOP/s':>9} {'of ceiling':>11}")
    for name, (model, _, _) in CASES.items():
        seconds = statistics.median(times[name])
        rate = tile_flops(mp.PRESETS[model]) / seconds
        against = f"{turns.ratio(times, name, one):.2f}" if model == BASE else ""
        print(f"{name:<34} {seconds:9.2f} {against:>9} {rate / 1e9:9.0f} {rate / best:11.0%}")


if __name__ == "__main__":
    main()

"""How long it takes to get ready, from the import on: `python -m benchmarks.ready`.

Needs the `test` extra. Every figure is of a new process. The imports; then loading SmolVLM-256M's tower and connector
(float32, Hugging Face's layout) and `warmup`, which gets every program that a stream of images runs: in a first
process, which compiles them, and in later ones, which find them in JAX's persistent compilation cache. Medians. Prints
a table and writes benchmarks/ready.json.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks import turns
from benchmarks.cpu import make_checkpoint

IMPORTS = {"jax, flax": "import jax, flax", "multipatch_jax": "import multipatch_jax"}
IMPORTING = "import time; start = time.perf_counter()\n{}\nprint(time.perf_counter() - start)"
GET_READY = """
import sys, time
import multipatch_jax as mp
start = time.perf_counter()
config, params = mp.from_pretrained(sys.argv[1])
loaded = time.perf_counter()
mp.warmup(params, config=config)
print(loaded - start, time.perf_counter() - loaded)
"""


def getting_ready(folder: Path, starts: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of loading and of warmup, without the cache's programs and with them."""

    def one(cache: str) -> tuple[float, float]:
        variables = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        load, warmup = map(float, turns.run_python(GET_READY, str(folder), **variables).split())
        return load, warmup

    first, *later = [one("cache") for _ in range(1 + starts)]
    return {
        name: {"load": [load for load, _ in pairs], "warmup": [warmup for _, warmup in pairs]}
        for name, pairs in {"first process": [first], "later process, persistent cache": later}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=7, help="processes for each figure")
    starts = parser.parse_args().starts
    imports = {name: list[float]() for name in IMPORTS}
    for _ in range(starts):
        for name, code in IMPORTS.items():
            imports[name].append(float(turns.run_python(IMPORTING.format(code))))
    for name, seconds in imports.items():
        print(f"import {name:<34} {statistics.median(seconds):6.2f} s", flush=True)
    print(f"import, ratio {'':<27} {turns.ratio(imports, 'multipatch_jax', 'jax, flax'):6.2f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name))
        ready = getting_ready(Path(name), starts)
    for process, seconds in ready.items():
        load, warmup = (statistics.median(seconds[step]) for step in ("load", "warmup"))
        print(f"{process:<41} {load + warmup:6.2f} s: load {load:.2f} s, warmup {warmup:.2f} s")
    turns.write_record("ready", "jax jaxlib flax numpy".split(), imports=imports, ready=ready)


if __name__ == "__main__":
    main()

"""Measures how long a process takes until it can encode images: `python -m benchmarks.ready`.

Needs the `test` extra. Takes every figure from a new process, and prints medians. Times the imports first. Then times
loading SmolVLM-256M's tower and connector (float32, Hugging Face's layout) and `warmup`, which compiles every program
that a stream of images runs. The first process compiles them; later ones find them in JAX's persistent compilation
cache. Prints a table and writes benchmarks/records/ready.json.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.shared import turns
from benchmarks.shared.checkpoint import make_checkpoint
from benchmarks.shared.options import parser
from benchmarks.shared.processes import run_python
from benchmarks.shared.records import write_record

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
    """Seconds of loading and of warmup, with an empty cache and with a filled one."""

    def one(cache: str) -> tuple[float, float]:
        variables = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        load, warmup = map(float, run_python("-c", GET_READY, str(folder), **variables).split())
        return load, warmup

    first, *later = [one("cache") for _ in range(1 + starts)]
    return {
        name: {"load": [load for load, _ in pairs], "warmup": [warmup for _, warmup in pairs]}
        for name, pairs in {"first process": [first], "later process, persistent cache": later}.items()
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--starts", type=int, default=7, help="processes for each figure")
    starts = options.parse_args().starts
    imports = {name: list[float]() for name in IMPORTS}
    for _ in range(starts):
        for name, code in IMPORTS.items():
            imports[name].append(float(run_python("-c", IMPORTING.format(code))))
    for name, seconds in imports.items():
        print(f"import {name:<34} {statistics.median(seconds):6.2f} s", flush=True)
    print(f"import, ratio {'':<27} {turns.ratio(imports, 'multipatch_jax', 'jax, flax'):6.2f}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        make_checkpoint(Path(name))
        ready = getting_ready(Path(name), starts)
    for process, seconds in ready.items():
        load, warmup = (statistics.median(seconds[step]) for step in ("load", "warmup"))
        print(f"{process:<41} {load + warmup:6.2f} s: load {load:.2f} s, warmup {warmup:.2f} s")
    write_record("ready", "jax jaxlib flax numpy".split(), imports=imports, ready=ready)


if __name__ == "__main__":
    main()

"""One side of `benchmarks.beside`. The old commit's code runs it too, so it uses only what both have at the front door.

python -P beside_worker.py turns {tile,photo,stream} FOLDER     a line on standard input is a turn; prints its seconds
python -P beside_worker.py ready FOLDER CACHE                   prints the seconds of import and load, of warmup, of all
"""

import os
import sys
import time


def turns(what: str, folder: str) -> None:
    """Takes turns, as `turns.work` does."""
    import numpy as np

    import multipatch_jax as mp

    config, params = mp.from_pretrained(f"{folder}/model")
    tile = np.load(f"{folder}/tile.npy")[None]

    def turn() -> None:
        if what == "tile":
            mp.encode_tiles(params, tile, config=config).block_until_ready()
        elif what == "photo":
            mp.encode_image(params, f"{folder}/photo.jpg", config=config).block_until_ready()
        else:
            mp.encode_images(params, [f"{folder}/wide.jpg"] * 3, config=config)  # 5 tiles each

    turn()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        turn()
        print(time.perf_counter() - start, flush=True)


def ready(folder: str, cache: str) -> None:
    """Prints the seconds of import and loading, of `warmup`, whose programs JAX keeps in `cache`, and of all three."""
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    start = time.perf_counter()
    import multipatch_jax as mp

    # What the package exports is imported at its first use, so part of the import falls into each step.
    config, params = mp.from_pretrained(f"{folder}/model")
    loaded = time.perf_counter()
    mp.warmup(params, config=config)
    done = time.perf_counter()
    print(loaded - start, done - loaded, done - start)


if __name__ == "__main__":
    {"turns": turns, "ready": ready}[sys.argv[1]](*sys.argv[2:])

"""One side of `benchmarks.beside`. The old commit's code runs it too, so it uses only what both have at the front door.

python -P beside_worker.py turns {tile,photo} FOLDER     a line on standard input is a turn; prints its seconds
python -P beside_worker.py ready FOLDER                  prints the seconds of import, load and warmup
python -P beside_worker.py compiled FOLDER               prints JSON: program -> flops, bytes, temporary bytes
"""

import dataclasses
import json
import sys
import time
from typing import Any


def turns(what: str, folder: str) -> None:
    """Takes turns, as `turns.work` does."""
    import numpy as np

    import multipatch_jax as mp

    config, params = mp.from_pretrained(f"{folder}/model")
    tile = np.load(f"{folder}/tile.npy")[None]

    def turn() -> None:
        if what == "tile":
            mp.encode_tiles(params, tile, config=config).block_until_ready()
        else:
            mp.encode_image(params, f"{folder}/photo.jpg", config=config).block_until_ready()

    turn()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        turn()
        print(time.perf_counter() - start, flush=True)


def ready(folder: str) -> None:
    """Prints the seconds of the import, of loading and of `warmup`."""
    start = time.perf_counter()
    import multipatch_jax as mp

    imported = time.perf_counter()
    config, params = mp.from_pretrained(f"{folder}/model")
    loaded = time.perf_counter()
    mp.warmup(params, config=config)
    print(imported - start, loaded - imported, time.perf_counter() - loaded)


def compiled(folder: str) -> None:
    """Prints what XLA says of the compiled programs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import multipatch_jax as mp

    config, params = mp.from_pretrained(f"{folder}/small")
    side = config.tiling.tile_size
    found = {}
    for name in ("float32", "float32, XLA alone", "bfloat16"):
        given = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params) if name == "bfloat16" else params
        options: dict[str, Any] = {"config": config}
        if "XLA" in name and hasattr(mp, "Compute"):
            options["compute"] = mp.Compute(encoder="flax")
        elif "XLA" in name:
            options["config"] = dataclasses.replace(config, attention="blocked")
        programs = {
            "1 tile": (mp.encode_tiles, (1, side, side, 3)),
            "17 tiles": (mp.encode_tiles, (17, side, side, 3)),
            "image, 600 x 800": (mp.encode_image, (600, 800, 3)),
        }
        for which, (function, shape) in programs.items():
            program = jax.jit(lambda p, x, f=function, o=options: f(p, x, **o))
            done = program.lower(given, jax.ShapeDtypeStruct(shape, np.uint8)).compile()
            cost: Any = done.cost_analysis()
            memory: Any = done.memory_analysis()
            figures = (cost["flops"], cost["bytes accessed"], memory.temp_size_in_bytes)
            found[f"{which}, {name}"] = dict(zip(("flops", "bytes", "temp"), figures, strict=True))
    print(json.dumps(found))


if __name__ == "__main__":
    {"turns": turns, "ready": ready, "compiled": compiled}[sys.argv[1]](*sys.argv[2:])

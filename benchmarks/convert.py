"""Compares a conversion with the reading and writing that it cannot avoid: `python -m benchmarks.convert`.

Converts a bfloat16 checkpoint of SmolVLM-256M's shapes (513 MB, random, language model included). In the same process,
in turns, reads the file's bytes and lets Orbax save the same arrays. Prints medians, and the ratio of the conversion to
the other two together.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

import multipatch_jax as mp
from benchmarks.shared.options import parser
from multipatch_jax.checkpoint import config_to_hf

ROUNDS = 5


def write_checkpoint(folder: Path, config: mp.ModelConfig) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.integers(0x3C00, 0x3F80, tensor.shape, np.uint16).view(ml_dtypes.bfloat16)
        for name, tensor in mp.params.tensors(config).items()
    }
    save_file(tensors, folder / "model.safetensors")
    for file, content in zip(("config.json", "preprocessor_config.json"), config_to_hf(config), strict=True):
        (folder / file).write_text(json.dumps(content))


def main() -> None:
    parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder, mp.presets.SMOLVLM_256M)
        times: dict[str, list[float]] = {"convert": [], "read the file": [], "Orbax saves the arrays": []}

        def measure(what: str, start: float) -> None:
            times[what].append(time.perf_counter() - start)

        for turn in range(ROUNDS + 1):
            start = time.perf_counter()
            config, params = mp.from_pretrained(folder, parts=mp.params.PARTS)
            mp.save_pretrained(folder / f"ours{turn}", config, params)
            measure("convert", start)
            start = time.perf_counter()
            (folder / "model.safetensors").read_bytes()
            measure("read the file", start)
            start = time.perf_counter()
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(folder / f"orbax{turn}", params)
            measure("Orbax saves the arrays", start)
            if turn == 0:  # warm-up
                times = {what: [] for what in times}
    medians = {what: statistics.median(values) for what, values in times.items()}
    for what, seconds in medians.items():
        print(f"{what:<24} {seconds:6.2f} s")
    unavoidable = medians["read the file"] + medians["Orbax saves the arrays"]
    print(f"{'ratio':<24} {medians['convert'] / unavoidable:6.2f}")


if __name__ == "__main__":
    main()

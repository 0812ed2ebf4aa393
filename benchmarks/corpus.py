"""Measures what Ray Data costs beside our own stream, on this CPU: `python -m benchmarks.corpus`.

Needs the extra `corpus`. Photographs of 768 x 1024 pixels, as JPEG files, go through SmolVLM-256M's tower and connector
with random weights in bfloat16, 5 tiles each. Two systems encode the same files:

| system | what it is |
|---|---|
| stream | `mp.iter_encode_images` in a process, whose tokens are thrown away |
| corpus | `mp.corpus.run` with one actor on a local Ray, which also writes the tokens as Parquet, 8 images a file |

Start-up is left out of both: the seconds are those from the end of the first 8 images to the end of the last. Each
system has a process of its own, and they take turns. Prints the medians and their ratio, and the seconds that one core
needs to decode a JPEG of 12 megapixels, of which docs/scale.md works out how many cores feed an accelerator. Writes
benchmarks/records/corpus.json.
"""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.shared.options import turns_parser
from benchmarks.shared.photo import photograph
from benchmarks.shared.processes import run_python
from benchmarks.shared.records import write_record

IMAGES, FIRST = 40, 8
SYSTEMS = ("stream", "corpus")


def stream(folder: Path) -> float:
    import multipatch_jax as mp

    config, params = mp.from_pretrained(folder / "model")
    mp.warmup(params, config=config)
    ends = []
    for tokens in mp.iter_encode_images(params, sorted((folder / "photos").iterdir()), config=config):
        assert tokens.shape == (5 * 64, 576)
        ends.append(time.time())
    assert len(ends) == IMAGES
    return ends[-1] - ends[FIRST - 1]


def corpus(folder: Path) -> float:
    import multipatch_jax as mp

    with tempfile.TemporaryDirectory() as out:
        options = {"model": folder / "model", "dtype": "bfloat16", "rows_per_file": FIRST}
        done = mp.corpus.run(folder / "photos", out, task="tokens", **options)
        assert (done.images, done.errors) == (IMAGES, 0)
        ends = sorted(file.stat().st_mtime for file in done.results.iterdir())
    assert len(ends) == IMAGES // FIRST
    return ends[-1] - ends[0]


def decode(folder: Path) -> list[float]:
    """The seconds of decoding a JPEG of 3000 x 4000 pixels, eleven times."""
    import multipatch_jax as mp

    file = folder / "large.jpg"
    photograph(3000, 4000).save(file, quality=92)
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        assert mp.load_image(file).shape == (3000, 4000, 3)
        seconds.append(time.perf_counter() - start)
    return seconds


def prepare(folder: Path) -> None:
    """Writes the photographs and the model."""
    import dataclasses

    import jax

    import multipatch_jax as mp

    (folder / "photos").mkdir()
    for index in range(IMAGES):
        photograph(768, 1024).rotate(index).save(folder / "photos" / f"{index:02}.jpg", quality=92)
    config = mp.presets.SMOLVLM_256M
    config = dataclasses.replace(config, text=None, tiling=dataclasses.replace(config.tiling, longest_edge=1024))
    params = mp.init_params(jax.random.key(0), config)
    params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    mp.save_pretrained(folder / "model", config, params)


def main() -> None:
    args = turns_parser(__doc__, rounds=3, help="turns of each system, two minutes each").parse_args()
    if args.worker:
        folder, name = args.worker
        print({"stream": stream, "corpus": corpus}[name](Path(folder)))
        return
    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for _ in range(args.rounds):
            for system in SYSTEMS:
                said = run_python("-m", "benchmarks.corpus", "--worker", str(folder), system, JAX_PLATFORMS="cpu")
                seconds[system].append(float(said.split()[-1]))
        decoding = decode(folder)
    for system in SYSTEMS:
        rate = (IMAGES - FIRST) / statistics.median(seconds[system])
        print(f"{system:<8} {statistics.median(seconds[system]):7.2f} s {rate:6.3f} images/s")
    ratio = statistics.median(seconds["corpus"]) / statistics.median(seconds["stream"])
    print(f"corpus / stream: {ratio:.3f}")
    print(f"decoding 12 megapixels: {statistics.median(decoding):.3f} s")
    packages = "jax jaxlib ray pyarrow numpy pillow".split()
    write_record("corpus", packages, images=IMAGES - FIRST, seconds=seconds, decoding=decoding)


if __name__ == "__main__":
    main()

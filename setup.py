"""Builds the compiled encoder of `native/` where there is a C++ compiler; what else there is to say is in setup.cfg.

Each extension is optional: where it cannot be built, `multipatch_jax` runs what XLA compiles in its place.
"""

import importlib.util
import platform
from pathlib import Path

from setuptools import Extension, setup

# Once for every set of instructions; `multipatch_jax.nn.native` picks the best that the machine has.
INSTRUCTIONS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTIONS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"],
    }
# Hidden, or the loader would make one of the same inline names of two builds.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi", "-Wno-ignored-attributes"]
FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # of GCC's own header for AVX-512

if platform.system() == "Darwin":
    FLAGS.append("-mmacosx-version-min=11.0")


def jaxlib_headers() -> list[str]:
    """Where XLA's C++ interface is, without importing jax."""
    spec = importlib.util.find_spec("jaxlib")
    return [str(Path(spec.origin).parent / "include")] if spec and spec.origin else []


setup(
    ext_modules=[
        Extension(
            f"multipatch_jax.nn._encoder_{name}",
            ["native/encoder.cc"],
            depends=[str(header) for header in Path("native").glob("*.h")],
            extra_compile_args=[*FLAGS, *(f"-isystem{path}" for path in jaxlib_headers()), *instructions],
            optional=True,
        )
        for name, instructions in INSTRUCTIONS.items()
    ]
)

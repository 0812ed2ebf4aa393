"""Builds the compiled encoder and decoder of `native/`. All other settings of the package are in setup.cfg.

Each extension is optional: where the C++ compiler is missing or fails, the install goes on without the extension, and
`multipatch_jax` runs both as XLA compiles them.
"""

import importlib.util
import platform
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

# Instruction set -> compiler flags. The encoder is built once for each; `multipatch_jax.nn.native` picks the best one
# that the CPU has.
INSTRUCTIONS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    AVX512 = ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"]
    INSTRUCTIONS |= {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}
# Symbols are hidden. The inline functions and tables of all builds have the same names, so that the dynamic loader
# would otherwise merge those of two builds, and one build would run another's code.
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden", "-Wno-psabi"]
FLAGS += ["-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # GCC's own AVX-512 header

# The compiled code is called through XLA and uses nothing of Python, so one wheel serves every version of Python. (The
# free-threaded builds of Python do not know this kind of wheel; theirs is for one version.)
ONE_WHEEL = not sysconfig.get_config_var("Py_GIL_DISABLED")

if platform.system() == "Darwin":
    FLAGS.append("-mmacosx-version-min=11.0")


def jaxlib_headers() -> list[str]:
    """Returns the folder of the headers of XLA's C++ interface, found without importing jax; [] without jaxlib."""
    spec = importlib.util.find_spec("jaxlib")
    return [str(Path(spec.origin).parent / "include")] if spec and spec.origin else []


setup(
    ext_modules=[
        Extension(
            f"multipatch_jax.nn._encoder_{name}",
            sorted(map(str, Path("native").glob("*.cc"))),
            depends=[str(header) for header in Path("native").glob("*.h")],
            extra_compile_args=[*FLAGS, *(f"-isystem{path}" for path in jaxlib_headers()), *instructions],
            py_limited_api=ONE_WHEEL,
            optional=True,
        )
        for name, instructions in INSTRUCTIONS.items()
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ONE_WHEEL else {},
)

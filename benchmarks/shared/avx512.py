"""Hides AVX-512 from processes, so that a machine that has it shows what a machine without it does."""

import subprocess
from pathlib import Path


def build_hider(folder: Path) -> str:
    """Compiles `hide_avx512.c` into `folder`. Processes with the returned path in LD_PRELOAD see no AVX-512.

    Needs Linux, an Intel processor and a C compiler.
    """
    library, source = folder / "hide_avx512.so", Path(__file__).with_name("hide_avx512.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return str(library)

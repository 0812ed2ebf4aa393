"""Writes what a command measured into `benchmarks/records/`, so that the README's figures can be checked."""

import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parents[1] / "records"


def write_record(name: str, packages: Iterable[str], **measured: Any) -> None:
    """Writes `records/NAME.json`: what was measured, the versions of `packages`, and the machine."""
    record = measured | {
        "versions": {package: metadata.version(package) for package in packages},
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")

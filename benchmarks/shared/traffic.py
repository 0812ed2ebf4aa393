"""Counts what a compiled program moves between the chip and its memory, from the program's text.

XLA's own count adds what stays on the chip: a TPU program fetches a weight into on-chip memory and reads it there,
which counts as three times its bytes. Here only what lies in main memory counts.
"""

import math
import re
from typing import NamedTuple

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1}
_SHAPE = re.compile(r"\b(\w+)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)(.*)$", re.M)
_FREE = ("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "copy-done", "slice-done")
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place; which operand has the new values
_BRANCHES = ("branch_computations", "true_computation", "false_computation")


class _Instruction(NamedTuple):
    name: str
    results: str
    opcode: str
    operands: str
    attributes: str

    def inputs(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.operands)

    def called(self, key: str) -> list[str]:
        """Names of the computations that an attribute names."""
        found = re.search(rf"{key}=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
        return re.findall(r"[\w.-]+", found[1]) if found else []

    def size(self, *, on_chip: bool | None = None) -> int:
        """Bytes of its results: all of them, those on the chip, or those in main memory."""
        shapes = [shape for shape in _SHAPE.finditer(self.results) if on_chip in (None, "S(" in (shape[3] or ""))]
        return sum(
            _BYTES.get(shape[1], 0) * math.prod(int(side) for side in shape[2].split(",") if side) for shape in shapes
        )


Computations = dict[str, dict[str, _Instruction]]


def traffic(text: str, cached: int = 0) -> int:
    """Bytes read from and written to main memory by one run of a program without loops over main memory.

    A conditional counts as the branch that moves the least.

    Args:
      cached: arrays of fewer bytes than this that the program makes for itself are not counted: they stay in the
        chip's cache. Its arguments, of any size, are.
    """
    bodies = re.findall(r"^(ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", text, re.M | re.S)
    lines = {name: [_Instruction(*found) for found in _LINE.findall(body)] for _, name, body in bodies}
    computations = {name: {line.name: line for line in of_one} for name, of_one in lines.items()}
    (entry,) = (name for is_entry, name, _ in bodies if is_entry)
    return _moved(entry, computations, cached)


def _moved(name: str, computations: Computations, cached: int) -> int:
    lines, total = computations[name], 0
    for line in lines.values():
        if line.opcode == "conditional":
            branches = [branch for key in _BRANCHES for branch in line.called(key)]
            total += min(_moved(branch, computations, cached) for branch in branches)
        elif line.opcode in ("while", "call"):
            total += sum(_moved(body, computations, cached) for body in line.called("body") + line.called("to_apply"))
        elif line.opcode in ("copy-start", "slice-start"):  # to the chip or from it
            total += line.size(on_chip=True)
        elif line.opcode not in _FREE:
            (inner,) = [computations[called] for called in line.called("calls")] or [{}]
            if line.size(on_chip=False) >= cached:
                total += _written(line, inner or lines)
            for number, operand in enumerate(line.inputs()):
                source = lines.get(operand)
                if source and (_is_given(source, lines) or source.size(on_chip=False) >= cached):
                    total += _read(source, line, number, inner)
    return total


def _is_given(line: _Instruction | None, lines: dict[str, _Instruction]) -> bool:
    """Whether a line is an argument, or one under another name."""
    while line and line.opcode in ("bitcast", "get-tuple-element"):
        line = lines.get(line.inputs()[0])
    return line is not None and line.opcode == "parameter"


def _read(source: _Instruction, line: _Instruction, number: int, inner: dict[str, _Instruction]) -> int:
    """Bytes that an instruction reads of its operand: slices, if it or the fusion that it calls reads nothing else."""
    if not source.size(on_chip=False):
        return 0
    parameters = [one.name for one in inner.values() if (one.opcode, one.operands) == ("parameter", str(number))]
    names = parameters or [source.name]
    users = [one for one in inner.values() if set(names) & set(one.inputs())] if inner else [line]
    if all(user.opcode in (*_SLICES, *_UPDATES) and user.inputs()[0] in names for user in users):
        return sum(user.size() for user in users if user.opcode in _SLICES)
    return source.size(on_chip=False)


def _written(line: _Instruction, around: dict[str, _Instruction]) -> int:
    """Bytes that an instruction writes: the new values alone, if it or its fusion updates an array in place.

    Args:
      around: the instructions of the fusion that it calls, or else those that it is one of.
    """
    if not line.size(on_chip=False):
        return 0
    among = around.values() if line.opcode == "fusion" else [line]
    updates = [one for one in among if one.opcode in _UPDATES]
    return (
        sum(around[one.inputs()[_UPDATES[one.opcode]]].size() for one in updates)
        if updates
        else line.size(on_chip=False)
    )

"""Lists the kernels of a compiled GPU program, from its text, and times them, from a trace of JAX's profiler."""

import collections
import dataclasses
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.shared.programs import computations_of

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)(.*)$")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")
_WORK = ("fusion", "fusion-start", "custom-call", "copy", "copy-start", "transpose", "reduce", "sort", "dynamic-slice")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What one instruction of a GPU program costs.

    Attributes:
      name: of the instruction.
      kind: what it does, such as "matmul 17408 x 768 x 3072, BIAS_GELU"; kernels of one kind count together.
      runs: in one call of the program.
      flops: of one run's matrix products.
      bytes: that one run reads and writes.
    """

    name: str
    kind: str
    runs: int
    flops: float
    bytes: float

    def least(self, flops: float, bandwidth: float) -> float:
        """Seconds of one run on a chip with these peak rates, in operations and bytes a second."""
        return max(self.flops / flops, self.bytes / bandwidth)


def _shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(int(n) for n in sides.split(",") if n)) for kind, sides in _SHAPE.findall(text)]


def _size(shape: tuple[str, tuple[int, ...]]) -> int:
    return _BYTES.get(shape[0], 4) * math.prod(shape[1])


def _read(operand: str, parameter: int, body: str) -> int:
    """Bytes that are read of an operand: of a fusion (`body` is its text) only a slice, if it takes no more of it."""
    names = re.findall(rf"^ +%?([\w.-]+) = \S+ parameter\({parameter}\)", body, re.M)
    uses = [line for line in body.splitlines() if names and re.search(rf"[(,] ?%{re.escape(names[0])}[,)]", line)]
    slices = [line for line in uses if re.search(r" (dynamic-)?slice\(%" + re.escape(names[0]), line)] if names else []
    whole = sum(map(_size, _shapes(operand)))
    if uses and len(slices) == len(uses):
        return min(whole, sum(_size(_shapes(line)[0]) for line in slices))
    return whole


def kernels_of(text: str) -> list[Kernel]:
    """The kernels of a program's HLO text, in order.

    Those in a loop with a known number of trips count each trip. Of a conditional, the branch that moves most counts.
    """
    computations, entry = computations_of(text)

    def look(computation: str, runs: int) -> list[Kernel]:
        types: dict[str, str] = {}
        found: list[Kernel] = []
        for line in computations[computation].splitlines():
            match = _INSTRUCTION.match(line)
            if match is None:
                continue
            name, kind, operation, operands, rest = match.groups()
            types[name] = kind
            if operation == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
                body = re.search(r"body=%?([\w.-]+)", rest)
                assert body is not None
                found += look(body[1], runs * int(trips[1] if trips else 1))
            elif operation == "conditional":
                branches = re.search(r"branch_computations=\{(.*?)\}", rest)
                names = (
                    branches[1].split(",") if branches else re.findall(r"(?:true|false)_computation=(%?[\w.-]+)", rest)
                )
                found += max((look(branch.strip(" %"), runs) for branch in names), key=_moved)
            elif operation in _WORK:
                inputs = [types.get(operand, "") for operand in re.findall(r"%([\w.-]+)", operands)]
                found.append(_kernel(name, kind, operation, inputs, rest, computations, runs))
        return found

    return look(entry, 1)


def _moved(kernels: list[Kernel]) -> float:
    return sum(kernel.runs * kernel.bytes for kernel in kernels)


def _kernel(
    name: str, kind: str, operation: str, inputs: list[str], rest: str, computations: dict[str, str], runs: int
) -> Kernel:
    results = _shapes(kind)
    called = re.search(r"calls=%?([\w.-]+)", rest)
    if operation == "fusion-start":  # ((operands), result, context)
        results = [shape for shape in results if shape not in [one for text in inputs for one in _shapes(text)]][:1]
    elif operation == "custom-call":
        results = results[:1]  # the others are its scratch memory
    body = computations.get(called[1], "") if called else ""
    read = sum(
        _read(operand, i, body) if body else sum(map(_size, _shapes(operand))) for i, operand in enumerate(inputs)
    )
    written = sum(map(_size, results))
    flops, what = 0.0, operation
    if "matmul" in rest or "gemm" in rest:
        (_, left), (_, result) = _shapes(inputs[0])[0], results[0]
        axis = re.search(r'"lhs_contracting_dimensions":\["(\d+)"', rest)
        inner = left[int(axis[1]) if axis else -1]
        flops = 2.0 * math.prod(result) * inner
        epilogue = re.search(r'"epilogue":"(\w+)"', rest)
        what = f"matmul {math.prod(result) // result[-1]} x {inner} x {result[-1]}"
        what += f", {epilogue[1]}" if epilogue else ""
        what += ", residual" if '"beta":1' in rest else ""
    elif "fmha" in rest:
        tiles, heads, patches, width = results[0][1]
        flops, what = 4.0 * tiles * heads * patches**2 * width, f"attention {tiles} x {heads} x {patches} x {width}"
    else:
        where = re.search(r'op_name="([^"]*)"', rest)
        what = f"{'/'.join(where[1].split('/')[-2:]) if where else operation}"
        if "dynamic_slice" in what:
            what = "slices of stacked params"
    return Kernel(name, what, runs, flops, float(read + written))


def kernel_seconds(function: Callable[[], jax.Array], calls: int = 10) -> dict[str, float]:
    """Runs a function and returns instruction or kernel -> seconds on the GPU in one call, all its runs together.

    Compile the function without command buffers (`xla_gpu_enable_command_buffer=""`): inside one, a kernel goes by its
    own name instead of its instruction's.
    """
    function().block_until_ready()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls - 1):
                function()
            function().block_until_ready()
        (file,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    found: dict[str, float] = collections.defaultdict(float)
    for plane in trace.planes:
        for line in plane.lines if plane.name.startswith("/device:GPU") else ():
            for event in line.events if line.name.startswith("Stream") else ():
                stats = dict(event.stats)
                found[str(stats.get("hlo_op", event.name))] += event.duration_ns * 1e-9 / calls
    return dict(found)


def report(kernels: list[Kernel], flops: float, bandwidth: float, seconds: dict[str, float] | None = None) -> list[str]:
    """Lines of a table by kind of kernel: runs, operations, bytes, the least milliseconds, and those measured.

    Args:
      flops, bandwidth: the chip's peak rates, in operations and bytes a second.
      seconds: from `kernel_seconds`.
    """
    kinds: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kernel in kernels:
        kinds[kernel.kind].append(kernel)
    rows = []
    for kind, group in kinds.items():
        runs = sum(one.runs for one in group)
        work, size, least = (
            sum(one.runs * value for one, value in zip(group, values, strict=True))
            for values in (
                [one.flops for one in group],
                [one.bytes for one in group],
                [one.least(flops, bandwidth) for one in group],
            )
        )
        measured = sum((seconds or {}).get(one.name, 0.0) for one in group)
        rows.append((kind, runs, work / 1e9, size / 1e6, least * 1e3, measured * 1e3))
    rows.sort(key=lambda row: -(row[5] if seconds else row[4]))
    names = {one.name for one in kernels}
    rest = sum(value for name, value in (seconds or {}).items() if name not in names) * 1e3
    lines = [f"{'kernels':<58} {'runs':>5} {'GFLOP':>7} {'MB':>7} {'least ms':>8} {'ms' if seconds else '':>7}"]
    for kind, *numbers, measured in rows:
        shown = f"{measured:7.3f}" if seconds else ""
        lines.append(f"{kind[:58]:<58} {numbers[0]:5d} {numbers[1]:7.0f} {numbers[2]:7.0f} {numbers[3]:8.3f} {shown}")
    if rest:
        lines.append(f"{'others':<58} {'':30} {rest:7.3f}")
    total = [sum(row[i] for row in rows) for i in range(1, 6)]
    shown = f"{total[4] + rest:7.3f}" if seconds else ""
    lines.append(f"{'all':<58} {total[0]:5d} {total[1]:7.0f} {total[2]:7.0f} {total[3]:8.3f} {shown}")
    return lines

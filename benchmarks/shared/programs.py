"""Reads what XLA says of a compiled program: its memory, its cost, its estimated cycles and its collectives."""

import math
import re
from typing import Any

import jax

COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_LOOP = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_RESULT = re.compile(rf" = (.+?) {COLLECTIVE.pattern}")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1, "u8": 1}


def text_of(program: jax.stages.Compiled) -> str:
    """The program's HLO text."""
    return _given("text", program.as_text())


def memory_of(program: jax.stages.Compiled) -> Any:
    """XLA's `CompiledMemoryStats`: bytes of arguments, results and temporaries."""
    return _given("memory analysis", program.memory_analysis())


def cost_of(program: jax.stages.Compiled) -> Any:
    """XLA's cost analysis: "flops", "bytes accessed" and more."""
    return _given("cost analysis", program.cost_analysis())


def _given(what: str, answer: Any) -> Any:
    if answer is None:
        raise RuntimeError(f"XLA gives no {what} of this program; its platform's compiler must offer one.")
    return answer


def computations_of(text: str) -> tuple[dict[str, str], str]:
    """A program's computations by name, and the name of the entry computation."""
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{$(.*?)^\}", text, re.M | re.S))
    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.M)
    if entry is None:
        raise ValueError(f"Expected the text of an HLO program with an ENTRY computation, got {text[:80]!r}.")
    return computations, entry[1]


def cycles(text: str) -> int:
    """Sums XLA's estimates over a TPU program.

    A loop's body counts as often as the loop runs, and a conditional counts its most expensive branch.
    """
    computations, entry = computations_of(text)

    def trips(line: str, condition: str) -> int:
        """A loop's constant bound. If the bound is data, the most blocks of 128 outputs that the loop can have."""
        bounds = re.findall(r" constant\((\d+)\)", computations[condition])
        return max(map(int, bounds or re.findall(r"s32\[(\d+),128\]", line)))

    totals: dict[str, int] = {}

    def total(name: str) -> int:
        if name in totals:
            return totals[name]
        result = 0
        for line in computations[name].splitlines():
            result += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if loop := _LOOP.search(line):
                result += trips(line, loop[1]) * total(loop[2])
            if branches := re.search(r" conditional\(.*branch_computations=\{(.*?)\}", line):
                result += max(total(branch.strip(" %")) for branch in branches[1].split(","))
        totals[name] = result
        return result

    return total(entry)


def collectives(text: str) -> dict[str, tuple[int, float]]:
    """Kind -> (how often, bytes of the results on one chip); one in a loop counts as often as the loop runs.

    XLA writes a collective that overlaps with work into several fusions, and gives them one channel; they count once.
    The sums of a shard_map have one channel too, but each has its own addition; they count apart.
    """
    computations, entry = computations_of(text)
    found: dict[tuple[str, ...], tuple[str, int, int]] = {}

    def look(name: str, times: int) -> None:
        for line in computations[name].splitlines():
            if match := _RESULT.search(line):
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
                size = sum(_BYTES[kind] * math.prod(int(n) for n in sides.split(",") if n) for kind, sides in shapes)
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else match[2]
                identity = re.findall(r"(?:channel_id|to_apply)=%?([\w.-]+)", line)
                found[tuple(identity)] = kind, times, times * size
            if loop := _LOOP.search(line):
                trips = max(map(int, re.findall(r" constant\((\d+)\)", computations[loop[1]])), default=1)
                look(loop[2], times * trips)
            else:
                for called in re.findall(r"(?:calls|to_apply|async_computation)=%?([\w.-]+)", line):
                    look(called, times)

    look(entry, 1)
    totals: dict[str, tuple[int, float]] = {}
    for kind, times, size in found.values():
        before = totals.get(kind, (0, 0))
        totals[kind] = before[0] + times, before[1] + size
    return totals

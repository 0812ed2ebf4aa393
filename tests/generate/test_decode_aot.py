"""A step compiled for a TPU reads the params and the cache once, and updates the cache in place."""

import importlib.util
import re

import pytest

from benchmarks.shared.traffic import traffic
from tests.helpers.processes import run_python
from tests.helpers.project import ROOT

PROGRAM = """HloModule step

%update (p.0: f32[4,128], p.1: f32[1,128], p.2: s32[]) -> f32[4,128] {
  %p.0 = f32[4,128]{1,0} parameter(0)
  %p.1 = f32[1,128]{1,0:S(1)} parameter(1)
  %p.2 = s32[] parameter(2)
  ROOT %written = f32[4,128]{1,0} dynamic-update-slice(%p.0, %p.1, %p.2, %p.2)
}

ENTRY %main (cache: f32[4,128], w: f32[128,128], row: s32[]) -> f32[4,128] {
  %cache = f32[4,128]{1,0} parameter(0)
  %w = f32[128,128]{1,0} parameter(1)
  %row = s32[]{:S(6)} parameter(2)
  %fetch = (f32[128,128]{1,0:S(1)}, f32[128,128]{1,0}, u32[]{:S(2)}) copy-start(%w)
  %fetched = f32[128,128]{1,0:S(1)} copy-done(%fetch)
  %new = f32[1,128]{1,0:S(1)} custom-call(%fetched, %cache), custom_call_target="x"
  ROOT %out = f32[4,128]{1,0} fusion(%cache, %new, %row), kind=kLoop, calls=%update
}
"""


def test_what_stays_on_the_chip_does_not_count():
    """The weight comes to the chip, the cache is read, and one row of it is written."""
    fetched = 128 * 128 * 4 + 4  # with XLA's context of the copy
    assert traffic(PROGRAM) == fetched + 4 * 128 * 4 + 128 * 4
    assert traffic(PROGRAM.replace("f32[1,128]{1,0:S(1)}", "f32[1,128]{1,0}")) == traffic(PROGRAM) + 2 * 128 * 4


def test_what_a_program_makes_and_keeps_in_a_cache_does_not_count():
    """Its arguments count, however small they are."""
    program = PROGRAM.replace("{1,0:S(1)}", "{1,0}").replace("copy-start", "negate").replace("copy-done", "negate")
    assert traffic(program, cached=128 * 4 + 1) == traffic(program) - 2 * 128 * 4
    assert traffic(program, cached=10**9) == 128 * 128 * 4 + 4 * 128 * 4
    renamed = program.replace("negate(%w)", "negate(%v)").replace(
        "  %fetch =", "  %v = f32[1,16384] bitcast(%w)\n  %fetch ="
    )
    assert traffic(renamed, cached=10**9) == traffic(program, cached=10**9)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="TPU's compiler, libtpu, is for Linux alone")
def test_a_step_moves_little_more_than_params_and_cache():
    """`python -m benchmarks.decode_aot` shows all layers, and fails where a step moves more than 1.15 x of both."""
    done = run_python("-m", "benchmarks.decode_aot", "--short", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    row = re.search(r"^v5e, 1 x 8192 .* ([\d.]+) x ", done.stdout, re.M)
    assert row
    assert float(row[1]) <= 1.15

"""Every family, phase, mesh and precision: the whole of what `tests/sharding/test_families.py` samples."""

from __future__ import annotations

import pytest
from sharding.test_families import CASES, LIMITS, MESHES, verify_case


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("family", "phase"), CASES, ids=["-".join(case) for case in CASES])
def test_a_sharded_step_computes_and_sends_what_its_plan_says(family, phase, mesh, dtype, sharding_table):
    verify_case(family, phase, MESHES[mesh], dtype, sharding_table)

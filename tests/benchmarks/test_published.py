"""The table of published results of dataflow chips, and the planner's; printed with the error of each row."""

from __future__ import annotations

import statistics

import pytest
from benchmarks import published


@pytest.mark.parametrize(
    "rows", ["intensities", "benchmarks", "speeds", "switches", "composition", "throughputs", "llama_3_8b"]
)
def test_ours_is_where_the_published_figure_says(rows: str) -> None:
    if rows == "llama_3_8b" and not published.MEASURED.is_file():
        pytest.skip("the measured latencies are not here")
    found = list(getattr(published, rows)())
    print("\n" + "\n".join(row.as_text() for row in found))
    assert not [row.what for row in found if not row.is_inside]
    if rows == "llama_3_8b":
        batched = [abs(row.error) for row in found if "batch 1," not in row.what]
        assert statistics.median(batched) < 0.15
    if rows == "composition":
        for name in ("a100-8", "h100-8"):
            ratios = [row.ours for row in found if row.id == "V13" and row.what.endswith(name)]
            assert ratios == sorted(ratios, reverse=True)

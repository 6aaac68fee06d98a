"""A hundred thousand events of random scenarios; see `runtime/test_scheduler_properties.py` for what is checked."""

from __future__ import annotations

import os
from collections import Counter
from typing import get_args

from hypothesis import HealthCheck, given, seed, settings
from scenarios import Scenario, check, play, scenarios

from plait.runtime.events import Event

NUM_EVENTS = int(os.environ.get("PLAIT_SCHEDULER_EVENTS", "100000"))
EVENTS = tuple(kind for part in get_args(Event) for kind in (get_args(part) or (part,)))


def test_every_rule_is_kept_for_many_events() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(scenarios())
    def carry_out(scenario: Scenario) -> None:
        records = play(scenario)
        check(scenario, records)
        seen.update(type(record.item).__name__ for record in records if isinstance(record.item, EVENTS))
        seen["scenarios"] += 1
        seen["switches"] += sum(type(r.item).__name__ == "Evict" and r.item.tier == "hbm" for r in records)  # type: ignore[union-attr]

    rounds = 0
    while (num_events := sum(seen[kind.__name__] for kind in EVENTS)) < NUM_EVENTS:
        seed(rounds)(carry_out)()
        rounds += 1
    kinds = ", ".join(f"{count} {name}" for name, count in seen.most_common() if name not in ("scenarios", "switches"))
    print(f"\n{num_events} events in {seen['scenarios']} scenarios, {seen['switches']} evictions from hbm: {kinds}")

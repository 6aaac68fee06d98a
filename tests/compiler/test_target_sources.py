from __future__ import annotations

import re
from dataclasses import asdict, replace

import pytest

from plait.compiler.target import Target, load_target, target_names
from plait.compiler.target_sources import source_of, target_numbers, target_schema, unused_sources, with_sources

CITATION = re.compile(r"arXiv|Hot Chips|ISCA 20|data sheet|^(assumed|derived)\b")


@pytest.mark.parametrize("name", target_names())
def test_every_number_that_comes_with_plait_cites_a_source_or_is_assumed_or_derived(name: str) -> None:
    target = load_target(name)
    numbers = target_numbers(target)
    assert len(numbers) > 10
    for number in numbers:
        assert number.source != target.source or number.is_assumed, number.key
        assert any(number.key == key or number.key.startswith(f"{key}.") for key in target.sources), number.key
        assert CITATION.search(number.source), number
    assert unused_sources(target) == ()


@pytest.mark.parametrize("name", target_names())
def test_numbers_are_all_of_the_file(name: str) -> None:
    found = {number.key: number.value for number in target_numbers(load_target(name))}
    assert found == dict(leaves(asdict(load_target(name))))


def leaves(table: dict[str, object], prefix: str = ""):
    for name, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif type(value) in (int, float):
            yield f"{prefix}{name}", value


def cited(**sources: str) -> Target:
    """A target with these sources, a dot in a key written as two underscores."""
    return replace(
        load_target("cpu"), source="the file", sources={key.replace("__", "."): text for key, text in sources.items()}
    )


def test_the_longest_beginning_counts() -> None:
    target = cited(tiers="a", tiers__hbm="b", tiers__hbm__capacity_bytes="c", compute__launch="d")
    assert source_of(target, "tiers.hbm.capacity_bytes") == "c"
    assert source_of(target, "tiers.hbm.efficiency") == "b"
    assert source_of(target, "tiers.ddr.efficiency") == "a"
    assert source_of(target, "compute.launch_seconds") == "the file"  # a beginning ends at a dot


def test_a_key_of_no_number_is_found() -> None:
    assert unused_sources(cited(tiers="a", tiers__hmb="b", compute__launch="d")) == ("tiers.hmb", "compute.launch")


def test_assumed_is_said_by_how_a_source_begins() -> None:
    target = cited(tiers="assumed: a", compute="derived from what is assumed")
    assumed = {number.key.partition(".")[0] for number in target_numbers(target) if number.is_assumed}
    assert assumed == {"tiers"}


def test_changed_numbers_have_new_sources_and_the_others_keep_theirs() -> None:
    base = cited(tiers="assumed: a", compute__launch_seconds="published")
    compute = replace(base.compute, launch_seconds=1.0)
    made = with_sources(
        replace(base, compute=compute, source="measured today"), base, {"compute.launch_seconds": "measured"}
    )
    assert source_of(made, "compute.launch_seconds") == "measured"
    assert source_of(made, "tiers.hbm.capacity_bytes") == "assumed: a"
    assert source_of(made, "network.overlap") == "the file"  # not "measured today"
    assert unused_sources(made) == ()


def test_a_source_of_changed_numbers_alone_goes() -> None:
    base = cited(tiers__hbm="assumed: a")
    keys = [number.key for number in target_numbers(base) if number.key.startswith("tiers.hbm.")]
    made = with_sources(base, base, dict.fromkeys(keys, "measured"))
    assert "tiers.hbm" not in made.sources


def test_the_schema_has_the_meaning_of_a_field_beside_its_type() -> None:
    schema = target_schema()
    text = str(schema)
    assert "share of the peak that matrix products sustain" in text
    assert "Units stand as on a checkerboard" in text
    assert schema["required"] == ["name", "description", "kind", "num_devices", "compute", "tiers", "links", "source"]
    assert schema["additionalProperties"] is False

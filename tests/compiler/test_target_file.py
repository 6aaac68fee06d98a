from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.compiler.target import Compute, Link, Target, Tier, load_target, target_names
from plait.compiler.target_file import target_to_toml, write_target
from plait.errors import TargetError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RATES = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
TARGETS = st.builds(
    Target,
    name=TEXTS,
    description=TEXTS,
    kind=st.sampled_from(["unified", "tiered"]),
    num_devices=st.integers(1, 2**40),
    compute=st.builds(Compute, st.dictionaries(TEXTS, RATES, max_size=3), RATES),
    tiers=st.dictionaries(TEXTS, st.builds(Tier, st.integers(0, 2**50), RATES, st.none() | TEXTS), max_size=3),
    links=st.dictionaries(TEXTS, st.builds(Link, RATES, RATES, st.booleans()), max_size=3),
    source=TEXTS,
)


@given(target=TARGETS)
def test_any_target_comes_back_from_its_file(tmp_path_factory: pytest.TempPathFactory, target: Target) -> None:
    file = tmp_path_factory.mktemp("target") / "mine.toml"
    write_target(target, file)
    assert load_target(file) == target


@pytest.mark.parametrize("name", target_names())
def test_the_targets_that_come_with_plait_come_back(tmp_path: Path, name: str) -> None:
    write_target(load_target(name), tmp_path / "mine.toml")
    assert load_target(tmp_path / "mine.toml") == load_target(name)
    assert (tmp_path / "mine.toml").read_text() == target_to_toml(load_target(name))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    write_target(load_target("cpu"), file)
    before = file.read_bytes()
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        write_target(replace(load_target("cpu"), description="\udcff"), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"cannot write target file .*: No such file or directory; choose another"):
        write_target(load_target("cpu"), tmp_path / "no" / "mine.toml")

from __future__ import annotations

from pathlib import Path

import pytest

from plait.compiler.memory.packing import Buffer, read_buffers
from plait.compiler.memory.packing.instance import make_instance
from plait.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "buffers.csv"


def test_columns_may_be_in_any_order_and_ids_and_alignments_missing(file: Path) -> None:
    file.write_text("\ufeffsize, lower,upper\r\n5,0,3\r\n\r\n7,-2,1\r\n", encoding="utf-8")
    assert read_buffers(file) == [Buffer("0", 0, 3, 5), Buffer("1", -2, 1, 7)]
    file.write_text("id,lower,upper,size,alignment\na,0,3,5,4\n")
    assert read_buffers(file) == [Buffer("a", 0, 3, 5, 4)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the header is ''; the columns are lower, upper and size"),
        ("id,start,end,size\n", "the header is 'id,start,end,size'; the columns are lower, upper and size"),
        ("lower,upper,size,gaps\n", "the header is 'lower,upper,size,gaps'"),
        ("lower,upper,size,size\n", "the header is 'lower,upper,size,size'"),
        ("lower,upper,size\n1,2\n", "line 2 has 2 cells, the header 3"),
        ("lower,upper,size\n1,2,x\n", "line 2: size is 'x', not an integer"),
        ("lower,upper,size\n1,2,1.5\n", "line 2: size is '1.5', not an integer"),
        ("lower,upper,size\n1,2,99999999999999999999999\n", "not an integer within 2"),
        ("lower,upper,size\n1,2,3\n2,2,3\n", "line 3: buffer '1' lives from 2 to 2"),
        ("lower,upper,size\n1,2,-3\n", "line 2: buffer '0' has size -3"),
        ("lower,upper,size,alignment\n1,2,3,0\n", "line 2: buffer '0' has alignment 0"),
        ("id,lower,upper,size\na,1,2,3\na,1,2,3\n", "there are two buffers 'a'"),
        (f"lower,upper,size\n1,2,{2**60}\n", "at most 2"),
    ],
    ids=[
        "empty",
        "names",
        "gaps",
        "twice",
        "cells",
        "text",
        "float",
        "large",
        "range",
        "size",
        "alignment",
        "id",
        "sum",
    ],
)
def test_what_is_no_problem_is_refused_with_its_line(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"buffers\.csv: ") as error_info:
        read_buffers(file)
    assert says in str(error_info.value)


def test_a_file_that_cannot_be_read_is_refused(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_buffers(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="it is no text"):
        read_buffers(file)


def test_only_moments_with_a_maximal_live_set_count() -> None:
    instance = make_instance([Buffer("a", 0, 10, 4), Buffer("b", 2, 5, 6), Buffer("c", 3, 10, 2), Buffer("d", 7, 9, 8)])
    assert instance.times.tolist() == [3, 7]
    assert (instance.begin.tolist(), instance.end.tolist()) == ([0, 0, 0, 1], [2, 1, 2, 2])
    assert (instance.unit, instance.loads.tolist()) == (2, [6, 7])


@pytest.mark.parametrize(
    ("alignments", "unit", "expected"),
    [((1, 4), 12, [1, 1]), ((8, 12), 4, [2, 3]), ((5, 1), 1, [5, 1])],
    ids=["divides", "shares", "prime"],
)
def test_the_unit_divides_sizes_and_alignments_that_matter(
    alignments: tuple[int, int], unit: int, expected: list[int]
) -> None:
    instance = make_instance([Buffer("a", 0, 1, 12, alignments[0]), Buffer("b", 0, 1, 24, alignments[1])])
    assert (instance.unit, instance.alignment.tolist()) == (unit, expected)


def test_parts_have_no_moment_in_common() -> None:
    instance = make_instance([Buffer("a", 0, 4, 1), Buffer("b", 4, 6, 5), Buffer("c", 3, 4, 1), Buffer("d", 5, 8, 1)])
    assert [sorted(part.tolist()) for part in instance.parts()] == [[1, 3], [0, 2]]
    part = instance.part(instance.parts()[1])
    assert part.loads.max() == 2

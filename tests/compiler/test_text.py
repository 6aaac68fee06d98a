from __future__ import annotations

from plait.compiler.text import Table


def test_a_column_is_as_wide_as_its_widest_cell_and_aligned_by_its_head() -> None:
    table = Table("sizes", ("name ", "bytes"), (("a", "12345678"), ("longer", "1")), note="all of them")
    assert table.as_text().splitlines() == [
        "sizes",
        "name       bytes",
        "a       12345678",
        "longer         1",
        "all of them",
    ]


def test_a_table_without_rows_is_its_title() -> None:
    assert Table("nothing", ("name ",), ()).as_text() == "nothing"

from __future__ import annotations

import pytest

from plait.cli.output import format_bytes, format_flops, format_seconds, print_json, print_table, progress_bars


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(0), "0 B"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(1536), "1.5 KiB"),
        (format_bytes(330 * 2**20), "330.0 MiB"),
        (format_bytes(5 * 2**40), "5.0 TiB"),
        (format_seconds(0), "0"),
        (format_seconds(0.0413), "41.3 ms"),
        (format_seconds(6.15e-6), "6.15 µs"),
        (format_seconds(2.5), "2.5 s"),
        (format_seconds(561), "561 s"),
        (format_seconds(1130), "18.8 min"),
        (format_seconds(64_400), "17.9 h"),
        (format_seconds(1e7), "116 days"),
        (format_flops(999), "999 FLOP"),
        (format_flops(3.31e9), "3.31 GFLOP"),
        (format_flops(2e15), "2 PFLOP"),
    ],
)
def test_numbers_are_shown_in_their_unit(text: str, expected: str) -> None:
    assert text == expected


def test_a_table_in_a_pipe_is_never_cut_and_markup_means_nothing(capsys) -> None:
    path = "/a/very/long/path" * 20
    print_table(["name ", "size"], [("[bold]x", 1), (path, 20)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1].startswith("[bold]x ")
    assert lines[2].split() == [path, "20"]


def test_json_keeps_characters_as_they_are(capsys) -> None:
    print_json({"text": "é日"})
    assert capsys.readouterr().out == '{\n "text": "é日"\n}\n'


def test_json_refuses_what_json_has_not() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json(float("nan"))


def test_progress_is_silent_where_there_is_no_terminal(capsys) -> None:
    with progress_bars() as bars:
        bars.update("pull", 1, 2)
        bars.update("pull", 2, 2)
    assert capsys.readouterr() == ("", "")

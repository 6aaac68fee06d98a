"""The page's structure, held without a browser; where one is installed, that it opens, how fast, and in silence."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from page_checker import HOSTILE, checked

from plait.compiler.report.page import environment, page
from plait.compiler.text import Table

PANELS = ("insights", "time", "schedule", "sections", "roofline", "tiers", "where", "occupancy", "sharding")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MOST_BYTES = 2_000_000
MOST_LOAD_MS = 2000


@pytest.fixture(scope="module", params=["seen", "staged", "chipless"])
def content(request) -> bytes:
    """The page of each of the plans."""
    return page(request.getfixturevalue(request.param))


def test_is_well_formed_and_asks_for_nothing(content) -> None:
    checker = checked(content)
    assert checker.wanted == []
    assert checker.anchors <= checker.ids
    assert not re.search(rb"url\(|@import|fetch\(|XMLHttpRequest|import\(", content)
    assert b"default-src 'none'" in content
    assert len(content) < MOST_BYTES


def test_every_panel_is_there(content) -> None:
    assert set(PANELS) <= checked(content).ids
    assert not re.search(rb"\b(nan|NaN|None)\b", content.split(b"<script>")[0])


def test_a_chip_has_a_view_and_other_devices_have_none(seen, chipless) -> None:
    assert b'class="picture chip"' in page(seen)
    assert b'class="picture chip"' not in page(chipless)


def test_tiers_over_time_are_left_out_where_they_are_not_planned(seen) -> None:
    without = page(replace(seen, mapped=replace(seen.mapped, tiers=None)))
    assert "occupancy" not in checked(without).ids


def test_hostile_names_are_text(seen) -> None:
    works = tuple(replace(work, path=f"{HOSTILE}/{work.path}") for work in seen.mapped.works)
    sections = tuple(
        replace(section, stages=tuple(replace(stage, name=HOSTILE, path=HOSTILE) for stage in section.stages))
        for section in seen.sections.sections
    )
    reshards = tuple(replace(each, value=HOSTILE, reader=HOSTILE, source=HOSTILE) for each in seen.reshards)
    mapped = replace(seen.mapped, works=works, sections=replace(seen.sections, sections=sections))
    target = replace(seen.compilation.target, name=HOSTILE, description=HOSTILE, source=HOSTILE)
    variants = tuple(replace(each, what=HOSTILE, schedule=None, why=HOSTILE) for each in seen.variants)
    made = replace(
        seen, mapped=mapped, reshards=reshards, variants=variants, compilation=replace(seen.compilation, target=target)
    )
    content = page(made)
    assert checked(content).scripts == 1
    assert HOSTILE.encode() not in content
    assert b"&lt;script&gt;alert(" in content


def test_tables_are_escaped() -> None:
    table = Table(HOSTILE, (f"{HOSTILE} ", "n"), ((HOSTILE, "1"),), HOSTILE)
    grid = environment().from_string('{% from "macros.html" import grid %}{{ grid(table) }}').render(table=table)
    assert "<script>" not in grid
    assert grid.count("&lt;script&gt;") == 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_opens_in_a_browser_in_time_and_without_a_complaint(seen, tmp_path: Path) -> None:
    probe = (
        "<script>addEventListener('error', e => document.title = 'failed: ' + e.message);"
        "addEventListener('load', () => setTimeout(() => { const t = performance.getEntriesByType('navigation')[0];"
        "document.body.dataset.load = t.loadEventEnd; document.getElementById('zoom-in').click();"
        "document.body.dataset.wide = document.documentElement.scrollWidth > innerWidth;"
        "document.body.dataset.requests = performance.getEntriesByType('resource').length;"
        "document.body.dataset.zoomed = document.querySelector('.bars').getAttribute('viewBox'); }, 0));</script>"
    )
    file = tmp_path / "page.html"
    file.write_bytes(page(seen).replace(b"</head>", probe.encode() + b"</head>", 1))
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    options += "--disable-component-update --disable-sync --dump-dom --window-size=1280,2000 --timeout=3000"
    command = [str(CHROMIUM), *options.split(), f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = dict(re.findall(r'data-(load|wide|requests|zoomed)="([^"]*)"', made.split("<body", 1)[1].split(">", 1)[0]))
    assert "<title>failed" not in made
    assert float(found["load"]) < MOST_LOAD_MS
    assert (found["wide"], found["requests"]) == ("false", "0")
    assert not found["zoomed"].startswith("0 0 100000 ")

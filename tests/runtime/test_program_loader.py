"""Loading programs: a second start does not wait for them, and damaged notes of their sizes only cost the wait."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import plait
from plait.compiler.bundle.reader import Bundle
from plait.runtime import program_loader
from plait.runtime.program_loader import ProgramLoader


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return plait.load(tiny_bundle)


def loader_of(bundle: Bundle) -> ProgramLoader:
    return ProgramLoader(bundle, lambda done, total: None)


def test_a_second_start_knows_the_sizes_before_anything_is_compiled(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loader_of(bundle)
    expected = first.entries()
    first.close()
    may_compile, compiled = threading.Event(), program_loader.compile_program

    def compile_late(*args, **kwargs):
        assert may_compile.wait(60)
        return compiled(*args, **kwargs)

    monkeypatch.setattr(program_loader, "compile_program", compile_late)
    second = loader_of(bundle)
    assert second.entries() == expected  # nothing is compiled yet
    may_compile.set()
    entry = expected[0]
    stages = second.executable(entry.name, entry.programs[0].configuration).stages
    assert [stage.temporary_bytes for stage in stages] == [s.temporary_bytes for s in entry.programs[0].stages]
    second.close()


def test_damaged_or_foreign_notes_are_written_anew(bundle: Bundle, tmp_path: Path) -> None:
    first = loader_of(bundle)
    expected = first.entries()
    first.close()
    (record,) = (tmp_path / "cache" / "plait" / "programs").glob("*.json")
    whole = record.read_bytes()
    for damaged in (b"", whole[:-3], b"{}", whole.replace(b"chat", b"cat")):
        record.write_bytes(damaged)
        again = loader_of(bundle)
        assert again.entries() == expected
        again.close()
        assert record.read_bytes() == whole


def test_short_requests_programs_are_loaded_first(bundle: Bundle) -> None:
    needed, others = program_loader._by_need(bundle.manifest.models)
    jobs = [program.configuration for _, program in (*needed, *others)]
    programs = [program.configuration for model in bundle.manifest.models for program in model.programs]
    assert sorted(jobs, key=str) == sorted(programs, key=str)
    phases = [job.phase for job in jobs]
    first = jobs[: len({(m.name, p.configuration.phase) for m in bundle.manifest.models for p in m.programs})]
    assert {job.phase for job in first} == set(phases)
    for phase in set(phases):
        smallest = min(job.batch * job.new_tokens for job in jobs if job.phase == phase)
        assert any(job.batch * job.new_tokens == smallest for job in first if job.phase == phase)


def test_programs_that_are_the_same_are_compiled_once(bundle: Bundle) -> None:
    told: list[tuple[int, int]] = []
    loader = ProgramLoader(bundle, lambda done, total: told.append((done, total)))
    chat, other, embed = (loader.entries()[place] for place in range(3))
    shapes = [program.configuration for program in chat.programs]
    assert shapes == [program.configuration for program in other.programs]
    assert all(loader.executable("chat", each) is loader.executable("other", each) for each in shapes)
    loader.close()
    assert {total for _, total in told} == {len(chat.programs) + len(embed.programs)}

"""Loading of a bundle's programs: those that answer the first request first, the others behind its back.

Programs are compiled, most often out of the compilation cache, on threads of their own; whoever needs one that is not
ready waits for it. Models of the same shapes have the same programs: what is the same is compiled once, and takes
memory once. What XLA says that a program needs must be known before anything is charged, so a first start reads, checks
and compiles them all. What it found is written down, for this bundle on this machine. Later starts load what a first
request takes, and the rest on one thread that gives way to everything else; what somebody waits for jumps the queue.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import logging
import os
import platform
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, ParamSpec, TypeAlias, TypeVar

import jax
import pydantic

from ..compiler.bundle.manifest import ModelEntry, ProgramEntry
from ..compiler.bundle.programs import load_exported
from ..compiler.bundle.reader import Bundle
from ..compiler.configuration import Configuration
from ..compiler.executable import Executable, compile_program, notes_of_programs, use_compilation_cache
from ..compiler.mesh import Mesh
from ..compiler.products import give_other_bits
from ..compiler.program import Program

__all__ = ["Awaited", "ProgramLoader"]

_LOG = logging.getLogger(__name__)
_THREADS = 2  # that compile, or read from the cache, what somebody waits for
_OTHER_BITS = "greedy answers may depend on what shares their steps; bundle it anew on this one"
_NICENESS = 10  # of the thread that loads what nobody waits for yet
_Job: TypeAlias = tuple[ModelEntry, ProgramEntry]
_StageBytes: TypeAlias = dict[str, list[tuple[int, int]]]  # (temporaries, results) of each stage, by program
P = ParamSpec("P")
T = TypeVar("T")

_SIZES = pydantic.TypeAdapter(_StageBytes)


class Awaited(Generic[T]):
    """Something that another thread makes, and makes at once when somebody waits for it.

    Args:
        make: Makes it.
        patient: Where it has its turn.
        urgent: Where it is made when somebody waits.
    """

    def __init__(self, make: Callable[[], T], patient: ThreadPoolExecutor, urgent: ThreadPoolExecutor) -> None:
        self._make = make
        self._urgent = urgent
        self._is_patient = patient is not urgent
        self._lock = threading.Lock()
        self._future = patient.submit(make)

    def result(self) -> T:
        """Returns it, or raises what its making raised."""
        with self._lock:
            if self._is_patient and self._future.cancel():
                self._is_patient = False
                self._future = self._urgent.submit(self._make)
            future = self._future
        return future.result()


class ProgramLoader:
    """Compiles the programs of a bundle for this machine.

    Args:
        bundle: The opened bundle.
        progress: Told how many of the programs are ready.

    Raises:
        BundleIntegrityError: if a program is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, progress: Callable[[int, int], None]) -> None:
        use_compilation_cache()
        self._entries = bundle.manifest.models
        self._record = _record_of(bundle)
        self._known = self._recorded()
        self._progress = progress
        first, rest = _by_need(self._entries)
        users: dict[Hashable, list[_Job]] = {}  # of each program, however many models it is of
        for job in (*first, *rest):
            users.setdefault(_identity(bundle, *job), []).append(job)
        self._ready, self._num_jobs = itertools.count(1), len(users)
        self._urgent = ThreadPoolExecutor(_THREADS, thread_name_prefix="plait-loader")
        self._are_first_here = threading.Event()
        self._patient = ThreadPoolExecutor(
            1, thread_name_prefix="plait-preloader", initializer=_give_way, initargs=(self._are_first_here,)
        )
        try:
            if self._known is None:
                list(self._urgent.map(lambda jobs: _read(bundle, jobs[0][1], is_checked=False), users.values()))
        except BaseException:
            self.close()
            raise
        needed = {_identity(bundle, *job) for job in first} if self._known is not None else users.keys()
        self._loading: dict[tuple[str, Configuration], Awaited[Executable]] = {}
        for identity, jobs in users.items():
            load = functools.partial(self._load, bundle, *jobs[0])
            loading = Awaited(load, self._urgent if identity in needed else self._patient, self._urgent)
            self._loading |= {(entry.name, program.configuration): loading for entry, program in jobs}
        self._urgent.submit(self._are_first_here.set)

    def entries(self) -> tuple[ModelEntry, ...]:
        """Returns the models with the bytes that XLA says here; waits for all programs where these are not known yet.

        Raises:
            ExecutionError: if a program does not compile here.
        """
        known = self._known
        if known is None:
            known = {
                _key(entry, program): [
                    (stage.temporary_bytes, stage.output_bytes)
                    for stage in self.executable(entry.name, program.configuration).stages
                ]
                for entry in self._entries
                for program in entry.programs
            }
            self._write(known)
            for entry in self._entries:
                if give_other_bits(entry.products):
                    _LOG.warning("%s was bundled on another kind of processor: %s", entry.name, _OTHER_BITS)
        return tuple(_with_sizes(entry, known) for entry in self._entries)

    def executable(self, model: str, configuration: Configuration) -> Executable:
        """Returns a compiled program; waits for it if need be.

        Raises:
            ExecutionError: if it does not compile here.
        """
        return self._loading[model, configuration].result()

    def submit(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaited[T]:
        """Makes something else that XLA compiles, after the programs."""
        return Awaited(lambda: make(*args, **kwargs), self._patient, self._urgent)

    def close(self) -> None:
        """Gives up what is not compiled yet."""
        self._are_first_here.set()
        for pool in (self._patient, self._urgent):
            pool.shutdown(cancel_futures=True)

    def _load(self, bundle: Bundle, entry: ModelEntry, program: ProgramEntry) -> Executable:
        stages = _read(bundle, program, is_checked=True)
        executable = compile_program(stages, num_blocks=_num_blocks(entry), mesh=_mesh(entry))
        self._progress(next(self._ready), self._num_jobs)  # whichever thread comes, none is lost
        return executable

    def _recorded(self) -> _StageBytes | None:
        try:
            known = _SIZES.validate_json(self._record.read_bytes())
        except (OSError, pydantic.ValidationError):
            return None
        programs = {_key(entry, program): len(program.stages) for entry in self._entries for program in entry.programs}
        return known if {key: len(stages) for key, stages in known.items()} == programs else None

    def _write(self, sizes: _StageBytes) -> None:
        """Notes what programs need. Does nothing where the cache cannot be written: the next start will wait again."""
        partial = self._record.with_suffix(f".{os.getpid()}")
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(_SIZES.dump_json(sizes))
            partial.replace(self._record)
        except OSError as error:
            _LOG.debug("sizes of programs are not kept: %s", error)


def _record_of(bundle: Bundle) -> Path:
    """Returns where the sizes of a bundle's programs are kept, as this XLA compiles them on this machine."""
    versions = " ".join(importlib.metadata.version(name) for name in ("plait", "jaxlib"))
    what = f"{bundle.manifest_digest} {versions} {jax.default_backend()} {platform.node()}"
    return notes_of_programs() / f"{hashlib.sha256(what.encode()).hexdigest()}.json"


def _by_need(entries: Sequence[ModelEntry]) -> tuple[list[_Job], list[_Job]]:
    """Returns the programs that a first, short request takes, and the others."""
    first = {
        id(min((p for p in entry.programs if p.configuration.phase == phase), key=_size_of))
        for entry in entries
        for phase in {program.configuration.phase for program in entry.programs} - {"verify"}
    }
    jobs = [(entry, program) for entry in entries for program in entry.programs]
    return [job for job in jobs if id(job[1]) in first], [job for job in jobs if id(job[1]) not in first]


def _give_way(are_first_here: threading.Event) -> None:
    """Lets the first programs, and then every other thread of the machine, go before this thread."""
    are_first_here.wait()
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def _identity(bundle: Bundle, entry: ModelEntry, program: ProgramEntry) -> Hashable:
    """Returns what programs have in common that compile to the same; the files of all are checked at the start."""
    stages = tuple((bundle.manifest.files[s.file], s.donated, s.takes, s.gives) for s in program.stages)
    return program.configuration, stages, _num_blocks(entry), _mesh(entry)


def _size_of(program: ProgramEntry) -> int:
    return program.configuration.batch * program.configuration.new_tokens


def _key(entry: ModelEntry, program: ProgramEntry) -> str:
    return f"{entry.name} {program.configuration.id}"


def _read(bundle: Bundle, program: ProgramEntry, *, is_checked: bool) -> list[Program]:
    return [
        Program(
            program.configuration,
            load_exported(bundle.read_bytes(stage.file), name=stage.file, is_checked=is_checked),
            stage.donated,
            stage.takes,
            stage.gives,
        )
        for stage in program.stages
    ]


def _num_blocks(entry: ModelEntry) -> int:
    return entry.kv.num_blocks if entry.kv else 0


def _mesh(entry: ModelEntry) -> Mesh:
    return entry.placement.mesh if entry.placement else Mesh((), ())


def _with_sizes(entry: ModelEntry, known: _StageBytes) -> ModelEntry:
    programs: list[ProgramEntry] = []
    for program in entry.programs:
        stages = tuple(
            dataclasses.replace(stage, temporary_bytes=temporary_bytes, output_bytes=output_bytes)
            for stage, (temporary_bytes, output_bytes) in zip(program.stages, known[_key(entry, program)], strict=True)
        )
        programs.append(dataclasses.replace(program, stages=stages))
    return dataclasses.replace(entry, programs=tuple(programs))

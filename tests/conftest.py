"""What all tests share: eight virtual devices and the named models' real weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from plait.models.registry import pull

# No deadline: other processes share the machine. In CI the same examples every time: a new find belongs to a person.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# Whoever starts tests in the background has SIGINT ignored, also in the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden from what is")
    parser.addoption("--benchmarks", action="store_true", help="run tests/benchmarks too, on an otherwise idle machine")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--benchmarks"):
        return
    for item in items:
        if "benchmarks" in item.path.parts or item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="a benchmark: run `make bench`"))


_SHARDING_ROW = "sharding row"


@pytest.fixture
def sharding_table(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Adds a row to the table that is printed after the tests: what a sharded step was compared with."""

    def add(family: str, phase: str, mesh: str, dtype: str, difference: float, collectives: int) -> None:
        columns = f"{family:10} {phase:8} {mesh:6} {dtype:8}"
        record_property(_SHARDING_ROW, f"{columns} difference {difference:8.1e}, {collectives:3} collectives")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = [value for report in reports for name, value in report.user_properties if name == _SHARDING_ROW]
    if rows:
        terminalreporter.section("sharded steps against unsharded ones")
        terminalreporter.write_line("\n".join(sorted(rows)))


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drops compiled programs after each file: those of all tests together take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2 135M Instruct, pulled into the cache if it isn't there."""
    return pull("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of all-MiniLM-L6-v2."""
    return pull("minilm-l6")


@pytest.fixture(scope="session")
def splade() -> Path:
    """The directory of SPLADE tiny."""
    return pull("splade-tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny.build_tiny_bundle`: two decoders and an encoder. All tests share it: not to be changed."""
    from tiny import build_tiny_bundle  # not before the number of devices is set

    return build_tiny_bundle(tmp_path_factory.mktemp("tiny"))

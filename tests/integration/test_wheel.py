"""The wheel: what is in it, and that it runs outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli", "compiler", "models", "runtime")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the repository, as `pip wheel` makes it; building in place leaves files there."""
    directory = tmp_path_factory.mktemp("wheel")
    source = copy_sources(directory / "source")
    done = run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", directory, source], directory)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("the package index cannot be reached, and setuptools is needed to build a wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = directory.glob("plait-*.whl")
    return wheel


def copy_sources(directory: Path) -> Path:
    """Returns a directory with the files of the repository that a build could take, tests and examples included."""
    suffixes = {".py", ".toml", ".json", ".md", ".html", ".typed"}
    for folder in ("", *PACKAGES, "tests", "examples"):
        pattern = "**/*" if folder else "*"
        for path in (ROOT / folder).glob(pattern):
            if path.is_file() and (path.suffix in suffixes or path.name in ("LICENSE", "py.typed")):
                copy = directory / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    return directory


def run(command: Sequence[str | Path], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the wheel alone is installed into; its dependencies are those of this environment."""
    directory = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        "--target",
        directory,
        wheel,
    ]
    done = run(command, directory)
    assert done.returncode == 0, done.stderr
    return directory


def test_the_wheel_has_every_module_and_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "*.toml", "*.json", "*.html")
        for path in (ROOT / package).rglob(pattern)
    }
    assert {f"plait/{file}" for file in files | {"__init__.py", "errors.py", "py.typed"}} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_has_nothing_but_the_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {tuple(name.split("/")[:2]) for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert {top for top, *_ in tops} == {"plait"}
    assert {inner for _, inner in tops} == {*PACKAGES, "__init__.py", "errors.py", "py.typed"}


def test_the_wheel_runs_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    code = "import plait, plait.cli.main, sys; print(plait.__file__, file=sys.stderr); plait.cli.main.run()"
    for arguments, says in ((["--version"], "plait 0.1.0\n"), (["targets"], "cpu-tiered")):
        done = run([sys.executable, "-c", code, *arguments], tmp_path, PYTHONPATH=str(installed))
        assert says in done.stdout
        assert (done.returncode, done.stderr) == (0, f"{installed / 'plait' / '__init__.py'}\n")

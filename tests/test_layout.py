"""The architecture, held: which package may import which, and what the package exports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import plait

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "compiler", "runtime", "cli")
MAY_IMPORT = {
    "models": {"errors"},
    "compiler": {"errors", "models"},
    "runtime": {"errors", "models.config", "compiler"},
    "cli": {"errors", "models", "compiler", "runtime", "__version__"},
}


def imports_of(path: Path) -> list[str]:
    """Returns the modules of plait outside its own package that a file imports, e.g. "compiler.graph"."""
    package = path.relative_to(ROOT).parent.parts
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = package[: len(package) - node.level + 1]
        modules = [node.module] if node.module else [alias.name for alias in node.names]
        found += [".".join((*base, module)) for module in modules]
    return [module for module in found if module.split(".")[0] != package[0]]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    allowed = MAY_IMPORT[package]
    for path in (ROOT / package).rglob("*.py"):
        for module in imports_of(path):
            is_allowed = any(module == name or module.startswith(f"{name}.") for name in allowed)
            assert is_allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("package", [*PACKAGES, "compiler/bundle", "models/checkpoint", "runtime/server"])
def test_every_package_has_its_docstring(package: str) -> None:
    assert ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))


def test_exports_are_these() -> None:
    assert plait.__all__ == sorted(plait.__all__)
    for name in plait.__all__:
        assert getattr(plait, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        plait.nothing  # noqa: B018


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["targets"]], ids=["import", "help", "version", "targets"]
)
def test_the_package_and_its_quick_commands_do_without_jax(arguments: list[str]) -> None:
    command = (
        f"sys.argv = ['plait', *{arguments}]; from plait.cli.main import build_app; build_app()(standalone_mode=False)"
    )
    heavy = "{'jax', 'flax', 'fastapi', 'huggingface_hub', 'orbax', 'optax'}"
    code = f"import sys, plait; {command if arguments else ''}\nassert {heavy}.isdisjoint(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_every_package_is_in_the_wheel() -> None:
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for path in ROOT.glob("*/**/__init__.py"):
        relative = path.parent.relative_to(ROOT)
        if relative.parts[0] in PACKAGES:
            assert f'"plait.{".".join(relative.parts)}"' in listed, relative

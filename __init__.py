"""plait: braid many models onto one mesh.

Trace JAX models into dataflow graphs, plan their memory, compile several of them into one bundle, and run the bundle
in a runtime that switches between them.

    import plait

    bundle = plait.load("agent.plait")
    with plait.Runtime(bundle, hbm="350MiB") as runtime:
        print(runtime.complete("chat", [{"role": "user", "content": "What is the capital of France?"}]).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import PlaitError

if TYPE_CHECKING:
    from .compiler.bundle.build import build_bundle as bundle
    from .compiler.bundle.reader import Bundle
    from .compiler.bundle.reader import open_bundle as load
    from .compiler.bundle.spec import BundleSpec, read_spec
    from .compiler.parallel import Plan, partition
    from .compiler.pipeline import compile_model as compile  # noqa: A004 - the verb of the stage, `plait.compile`
    from .compiler.target import Target, load_target
    from .compiler.trace import trace
    from .runtime.engine import Runtime
    from .runtime.request import SamplingParams

__all__ = [
    "Bundle",
    "BundleSpec",
    "PlaitError",
    "Plan",
    "Runtime",
    "SamplingParams",
    "Target",
    "bundle",
    "compile",
    "load",
    "load_target",
    "partition",
    "read_spec",
    "trace",
]

__version__ = "0.1.0"

# Imported when first asked for: `import plait` and the command line's help stay fast without JAX.
_HOMES = {
    "Bundle": ("compiler.bundle.reader", "Bundle"),
    "BundleSpec": ("compiler.bundle.spec", "BundleSpec"),
    "Plan": ("compiler.parallel", "Plan"),
    "Runtime": ("runtime.engine", "Runtime"),
    "SamplingParams": ("runtime.request", "SamplingParams"),
    "Target": ("compiler.target", "Target"),
    "bundle": ("compiler.bundle.build", "build_bundle"),
    "compile": ("compiler.pipeline", "compile_model"),
    "load": ("compiler.bundle.reader", "open_bundle"),
    "load_target": ("compiler.target", "load_target"),
    "partition": ("compiler.parallel", "partition"),
    "read_spec": ("compiler.bundle.spec", "read_spec"),
    "trace": ("compiler.trace", "trace"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

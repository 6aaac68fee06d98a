"""What `plait bench switch` switches over, if it is given no bundle: variants of SmolLM2, MiniLM and SPLADE.

Variants are written once, each when it is not there yet, and so is the bundle: an interrupted run goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PlaitError

if TYPE_CHECKING:
    from ..compiler.bundle.build import BuildProgress
    from ..compiler.bundle.manifest import ModelEntry
    from ..compiler.bundle.reader import Bundle
    from .output import Bars

__all__ = ["one_model_bundle", "variants_bundle"]

_SOURCE = "smollm2-135m"
_DECODER = {"dtype": "bf16", "sequence": 256, "batch": 1, "kv_tokens": 512}
_ENCODER = {"sequence": 64, "batch": 4}


def variants_bundle(directory: Path, num_pairs: int, bars: Bars) -> Bundle:
    """Returns the bundle of a number of chat models, a guard for each, an embedding and a sparse one.

    Args:
        directory: Where variants and bundles are kept.
        num_pairs: Of chat and guard models: half as many as there are variants.
        bars: Shown what is done.

    Raises:
        PlaitError: whatever pulling, reading or writing raises.
    """
    from ..compiler.bundle.build import build_bundle
    from ..compiler.bundle.spec import BundleSpec
    from ..models import registry
    from ..models.checkpoint import open_checkpoint
    from ..models.checkpoint.hf_variant import write_variant

    path = directory / f"switch-{num_pairs}.plait"
    if (kept := _kept(path)) is not None:
        return kept
    variants = [directory / f"variant-{seed}" for seed in range(2 * num_pairs)]
    source = open_checkpoint(registry.resolve(_SOURCE, base=directory, progress=lambda done, total: None))
    for seed, variant in enumerate(variants):
        bars.update("variants", seed, len(variants))
        if not variant.is_dir():
            write_variant(source, variant, seed=seed)
    bars.update("variants", len(variants), len(variants))
    spec = BundleSpec.model_validate(_spec(variants))
    return build_bundle(spec, path, base=directory, progress=_build_progress("bundle", len(spec.models), bars))


def one_model_bundle(bundle: Bundle, model: str, directory: Path, bars: Bars) -> Path:
    """Returns the path of a bundle of one model of another bundle, as a server that holds one model has it."""
    from ..compiler.bundle.build import build_bundle
    from ..compiler.bundle.spec import BundleSpec

    entry = bundle.manifest.model(model)
    path = directory / f"one-of-{bundle.manifest.name}.plait"
    if _kept(path) is None:
        directory.mkdir(parents=True, exist_ok=True)
        spec = BundleSpec.model_validate(
            {
                "bundle": "one",
                "target": "cpu-tiered",
                "models": {model: {"source": entry.source, "dtype": entry.dtype, **_sizes(entry)}},
            }
        )
        build_bundle(spec, path, base=bundle.path.parent, progress=_build_progress("bundle of one", 1, bars))
    return path


def _sizes(entry: ModelEntry) -> dict[str, int]:
    assert entry.kv is not None, entry.name
    kv_tokens = entry.kv.num_blocks * entry.kv.block_tokens
    return {"sequence": entry.sequence, "batch": entry.batch, "kv_tokens": kv_tokens}


def _kept(path: Path) -> Bundle | None:
    """Returns the bundle of an earlier run, if this version can use it."""
    from .. import __version__
    from ..compiler.bundle.reader import open_bundle

    try:
        bundle = open_bundle(path)
    except PlaitError:  # there is none, it is damaged or of another format
        return None
    return bundle if bundle.manifest.versions["plait"] == __version__ else None


def _build_progress(label: str, num_models: int, bars: Bars) -> BuildProgress:
    """Returns what shows how many models of a bundle are done."""
    built: set[str] = set()

    def report(model: str, stage: str, done: int, total: int) -> None:
        if stage == "programs" and done == total:
            built.add(model)
        bars.update(label, len(built), num_models)

    return report


def _spec(variants: list[Path]) -> dict[str, object]:
    """Returns the bundle file: the first half of the variants chat, the others guard them."""
    half = len(variants) // 2
    decoders = {f"chat-{i}": variant for i, variant in enumerate(variants[:half])}
    decoders |= {f"guard-{i}": variant for i, variant in enumerate(variants[half:])}
    cycle = [step for i in range(half) for step in ("embed", "sparse", f"chat-{i}", f"guard-{i}")]
    return {
        "bundle": "switch",
        "target": "cpu-tiered",
        "models": {
            **{name: {"source": str(variant), **_DECODER} for name, variant in decoders.items()},
            "embed": {"source": "minilm-l6", **_ENCODER},
            "sparse": {"source": "splade-tiny", **_ENCODER},
        },
        "workflows": {"agent": cycle},
    }

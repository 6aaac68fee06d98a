"""Whether the parts of a manifest agree: names are unique, references lead somewhere, shapes and counts match.

The types in `manifest.py` bound each number by itself; this file checks what no single field can say. The writer calls
it before a bundle is put in place, the reader before anything of a bundle is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from ...errors import BundleIntegrityError, ConfigurationError
from ...models.config import DecoderConfig
from .digests import num_chunks
from .manifest import FileEntry, Manifest, ModelEntry, ProgramEntry
from .placement import Placement

__all__ = ["MANIFEST_FILE", "check_manifest", "check_relative"]

MANIFEST_FILE = "manifest.json"


def check_relative(relative: str) -> None:
    """Checks that a path of the manifest can only mean a file inside the bundle, whatever the platform.

    Raises:
        BundleIntegrityError: if it is absolute, has `.`, `..` or empty parts, backslashes or control characters, or
            is the manifest itself.
    """
    parts = relative.split("/")
    is_plain = relative.isprintable() and "\\" not in relative and ":" not in parts[0]
    if not is_plain or any(part in ("", ".", "..") for part in parts) or parts[0] == MANIFEST_FILE:
        raise BundleIntegrityError(
            f"bundle lists the file {relative!r}; only plain paths relative to the bundle are allowed"
        )


def check_manifest(manifest: Manifest) -> None:
    """Checks that the parts of a manifest agree.

    Raises:
        BundleIntegrityError: naming the first part that does not.
    """
    for relative, entry in manifest.files.items():
        check_relative(relative)
        _check_file(relative, entry)
    if not manifest.models:
        raise BundleIntegrityError("manifest.json lists no models")
    names = [name for model in manifest.models for name in (model.name, *model.aliases)]
    _check_unique("model name or alias", names)
    for model in manifest.models:
        _check_model(manifest, model)
    _check_known("workflow", set(names), (name for steps in manifest.workflows.values() for name in steps))
    _check_unique("model name, alias or route", [*names, *manifest.routes])
    _check_known("route", set(names), (name for route in manifest.routes.values() for name in route.models))
    _check_routes(manifest)
    if isinstance(manifest.traffic, dict):
        _check_known("traffic", set(names), manifest.traffic)
    _check_pairs(manifest)


def _check_routes(manifest: Manifest) -> None:
    """Checks that the models of a route can do something in common."""
    for name, route in manifest.routes.items():
        models = [manifest.model(model) for model in route.models]
        if not set(models[0].capabilities).intersection(*(model.capabilities for model in models)):
            said = ", ".join(f"{model.name} ({', '.join(model.capabilities)})" for model in models)
            raise BundleIntegrityError(f"the models of route {name!r} have nothing in common that they can do: {said}")


def _check_file(relative: str, entry: FileEntry) -> None:
    if len(entry.chunk_sha256) != num_chunks(entry.size_bytes):
        raise BundleIntegrityError(
            f"manifest.json lists {len(entry.chunk_sha256)} chunk digests for {relative!r}, "
            f"its {entry.size_bytes} bytes have {num_chunks(entry.size_bytes)} chunks"
        )


def _check_model(manifest: Manifest, model: ModelEntry) -> None:
    for relative in _references(model):
        if relative not in manifest.files:
            raise BundleIntegrityError(f"model {model.name!r} needs {relative!r}, which manifest.json does not list")
    _check_unique(f"configuration of model {model.name!r}", [entry.configuration.id for entry in model.programs])
    for entry in model.programs:
        shapes = entry.configuration
        if min(shapes.batch, shapes.new_tokens) < 1 or not shapes.new_tokens <= shapes.context <= model.sequence:
            raise BundleIntegrityError(
                f"model {model.name!r} has the impossible configuration {shapes.id} for a sequence of {model.sequence}"
            )
    _check_architecture(model)
    _check_canary(model)
    _check_stages(model)


def _references(model: ModelEntry) -> Iterator[str]:
    yield model.weights
    yield model.tokenizer
    if model.chat_template is not None:
        yield model.chat_template
    for entry in model.programs:
        for stage in entry.stages:
            yield stage.file


def _check_architecture(model: ModelEntry) -> None:
    """Checks the architecture's fields, and that decoders have a KV cache and encoders have none."""
    try:
        config = model.config
    except ConfigurationError as error:
        raise BundleIntegrityError(f"model {model.name!r} has a damaged architecture: {error}") from None
    if isinstance(config, DecoderConfig) != (model.kv is not None):
        what = "no KV cache" if model.kv is None else "a KV cache"
        raise BundleIntegrityError(f"model {model.name!r} of family {config.family!r} has {what}")


def _check_canary(model: ModelEntry) -> None:
    canary, vocab_size = model.canary, model.config.vocab_size
    if canary is None:
        return
    if max(*canary.prompt, *canary.tokens, 0) >= vocab_size:
        raise BundleIntegrityError(f"the canary of model {model.name!r} has tokens beyond its {vocab_size}")
    if len(canary.prompt) + len(canary.tokens) > model.sequence:
        raise BundleIntegrityError(f"the canary of model {model.name!r} is longer than its sequence {model.sequence}")


def _check_stages(model: ModelEntry) -> None:
    """Checks that programs and placement have the same stages, and that each stage has what it needs."""
    placement = model.placement
    num_stages = 1 if placement is None else len(placement.stages)
    for entry in model.programs:
        if len(entry.stages) != num_stages:
            raise BundleIntegrityError(
                f"model {model.name!r} has {num_stages} stages, its program {entry.configuration.id} has "
                f"{len(entry.stages)}"
            )
        _check_handed(model, entry)
    if placement is not None:
        _check_placement(model, placement)
    _check_segments(model)


def _check_segments(model: ModelEntry) -> None:
    """Checks that every tensor is in one segment, and that a device's segments are its share of the weights."""
    _check_unique(f"tensor in a segment of model {model.name!r}", [name for s in model.segments for name in s.tensors])
    if any(len(segment.device_bytes) != model.num_devices for segment in model.segments):
        raise BundleIntegrityError(f"model {model.name!r} has a segment that is not on its {model.num_devices} devices")
    held = tuple(share.weights_bytes for share in model.shares)
    if model.segment_ends[-1] != held:
        raise BundleIntegrityError(
            f"model {model.name!r} has segments of {list(model.segment_ends[-1])} bytes on its devices, "
            f"its weights are {list(held)} bytes"
        )


def _check_handed(model: ModelEntry, entry: ProgramEntry) -> None:
    given: set[int] = set()
    for number, stage in enumerate(entry.stages):
        if missing := sorted(set(stage.takes) - given):
            raise BundleIntegrityError(
                f"stage {number} of program {entry.configuration.id} of model {model.name!r} takes the value "
                f"{missing[0]}, which no earlier stage gives"
            )
        given.update(stage.gives)
    if not entry.stages[-1].gives:
        raise BundleIntegrityError(f"program {entry.configuration.id} of model {model.name!r} gives no result")


def _check_placement(model: ModelEntry, placement: Placement) -> None:
    axes = set(placement.mesh_shape)
    layouts = [(f"parameter {name!r}", dims) for stage in placement.stages for name, dims in stage.parameters.items()]
    for what, dims in [*layouts, ("KV pool", (placement.pool_axes,))]:
        used = [axis for dim in dims for axis in dim]
        if len(set(used)) != len(used) or not set(used) <= axes:
            raise BundleIntegrityError(
                f"{what} of model {model.name!r} is divided over {', '.join(used)}; the mesh has each of "
                f"{', '.join(sorted(axes)) or 'no axis'} once"
            )
    config = model.config
    num_layers = config.num_layers if isinstance(config, DecoderConfig) else 0
    layers = [layer for stage in placement.stages for layer in stage.layers]
    if layers != list(range(num_layers)):
        raise BundleIntegrityError(
            f"model {model.name!r} has {num_layers} layers with a KV pool, its stages have the pools of {layers}"
        )
    if isinstance(config, DecoderConfig):
        parts, (heads, _) = placement.mesh.num_shards(placement.pool_axes), config.cache_shapes[0]
        if heads % parts:
            raise BundleIntegrityError(f"model {model.name!r} has {heads} KV heads, which don't divide by {parts}")


def _check_pairs(manifest: Manifest) -> None:
    """Checks that both models of a pair are decoders that have the programs for it, and that a target has one draft."""
    models = {model.name: model for model in manifest.models}
    pairs = manifest.speculative
    _check_known("speculative", set(models), (name for pair in pairs for name in (pair.draft, pair.target)))
    _check_unique("speculative target", (pair.target for pair in pairs))
    for pair in pairs:
        if pair.draft == pair.target:
            raise BundleIntegrityError(f"manifest.json has {pair.draft!r} as its own draft")
        for name, tokens in ((pair.target, pair.tokens + 1), (pair.draft, 2)):
            batches = [
                program.configuration.batch
                for program in models[name].programs
                if program.configuration.phase == "verify" and program.configuration.new_tokens >= tokens
            ]
            if max(batches, default=0) < models[name].batch:
                raise BundleIntegrityError(
                    f"manifest.json has {name!r} in a speculative pair, and no program of it that verifies {tokens} "
                    f"tokens of {models[name].batch} sequences"
                )


def _check_unique(what: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise BundleIntegrityError(f"manifest.json has the {what} {name!r} {count} times")


def _check_known(what: str, known: set[str], names: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise BundleIntegrityError(
                f"manifest.json's {what} names {name!r}, which is no model; known: {', '.join(sorted(known))}"
            )

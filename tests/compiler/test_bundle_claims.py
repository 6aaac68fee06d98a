"""Manifests that contradict themselves or lie are refused; so is a bundle that is not the one somebody demands."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_factory import ENCODER, WEIGHTS, make_model, rewrite_manifest

from plait.compiler.bundle.manifest import FileEntry, KVPlan, ModelEntry, StageProgram
from plait.compiler.bundle.placement import Placement, StagePlacement
from plait.compiler.bundle.reader import open_bundle
from plait.compiler.configuration import Configuration
from plait.errors import BundleIntegrityError, ConfigurationError

pytestmark = pytest.mark.usefixtures("own_cache")

ESCAPES = ["../outside", "/etc/hostname", "models/../../outside", "models//x", ".", "", "a\\b", "C:/x", "a\nb", "a\0b"]


@pytest.mark.parametrize("relative", ESCAPES, ids=repr)
def test_listed_path_that_escapes_is_refused(bundle_path: Path, relative: str) -> None:
    bundle_path.with_name("outside").write_bytes(b"")
    manifest = open_bundle(bundle_path).manifest
    entry = FileEntry(0, hashlib.sha256(b"").hexdigest(), ())
    rewrite_manifest(bundle_path, manifest, files={**manifest.files, relative: entry})
    with pytest.raises(BundleIntegrityError, match="only plain paths relative to the bundle"):
        open_bundle(bundle_path)


CHAT = make_model("chat")
PROGRAM_ENTRY = CHAT.programs[0]
STAGE = PROGRAM_ENTRY.stages[0]


def with_stages(*stages: StageProgram) -> ModelEntry:
    """The chat model with other stages in its program."""
    return replace(CHAT, programs=(replace(PROGRAM_ENTRY, stages=stages),))


def placed(*stages: StagePlacement, mesh: dict[str, int] | None = None, pool_axes: tuple[str, ...] = ()) -> ModelEntry:
    """The chat model over several devices, each stage with the same program."""
    return replace(with_stages(*(STAGE for _ in stages)), placement=Placement(mesh or {"tensor": 2}, pool_axes, stages))


WHOLE = StagePlacement({"layers.0.weight": ((), ("tensor",))}, (0,), 100, 10)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(CHAT, weights="models/none"), "model 'chat' needs 'models/none', which manifest.json does not list"),
        (replace(CHAT, tokenizer="../tokenizer.json"), "needs '../tokenizer.json'"),
        (replace(CHAT, weights_bytes=0), r"models.0.weights_bytes: Input should be greater than 0"),
        (replace(CHAT, sequence=-1), "models.0.sequence"),
        (replace(CHAT, batch=0), "models.0.batch"),
        (replace(CHAT, name=""), "models.0.name"),
        (replace(CHAT, aliases=("chat",)), "model name or alias 'chat' 2 times"),
        (replace(CHAT, programs=()), "models.0.programs"),
        (replace(CHAT, programs=(PROGRAM_ENTRY,) * 2), "configuration of model 'chat' 'decode-b1-t1-c64' 2 times"),
        (replace(CHAT, programs=(replace(PROGRAM_ENTRY, flops=-1),)), "models.0.programs.0.flops"),
        (with_stages(replace(STAGE, temporary_bytes=-1)), "programs.0.stages.0.temporary_bytes"),
        (with_stages(replace(STAGE, donated=(-1,))), "donated"),
        (with_stages(), "programs.0.stages: Tuple should have at least 1 item"),
        (with_stages(STAGE, STAGE), "has 1 stages, its program decode-b1-t1-c64 has 2"),
        (
            with_stages(replace(STAGE, takes=(3,))),
            "stage 0 of program .* takes the value 3, which no earlier stage gives",
        ),
        (with_stages(replace(STAGE, gives=())), "decode-b1-t1-c64 of model 'chat' gives no result"),
        (
            replace(CHAT, placement=Placement({"tensor": 2}, (), ())),
            "placement.stages: Tuple should have at least 1 item",
        ),
        (placed(WHOLE, mesh={"tensor": 0}), "placement.mesh_shape.tensor"),
        (placed(WHOLE, mesh={"x": 2}), "'layers.0.weight' of model 'chat' is divided over tensor; the mesh has"),
        (
            placed(replace(WHOLE, parameters={"w": (("tensor",), ("tensor",))})),
            "'w' of model 'chat' is divided over tensor, tensor; the mesh has each of tensor once",
        ),
        (placed(WHOLE, WHOLE), r"has 1 layers with a KV pool, its stages have the pools of \[0, 0\]"),
        (placed(replace(WHOLE, layers=())), r"has 1 layers with a KV pool, its stages have the pools of \[\]"),
        (placed(WHOLE, pool_axes=("tensor",)), "has 1 KV heads, which don't divide by 2"),
        (replace(CHAT, programs=(replace(PROGRAM_ENTRY, step_seconds=-0.5),)), "step_seconds"),
        (
            replace(CHAT, programs=(replace(PROGRAM_ENTRY, configuration=Configuration("decode", 0, 1, 64)),)),
            "impossible configuration decode-b0-t1-c64",
        ),
        (
            replace(CHAT, programs=(replace(PROGRAM_ENTRY, configuration=Configuration("decode", 1, 1, 128)),)),
            "decode-b1-t1-c128 for a sequence of 64",
        ),
        (replace(CHAT, kv=KVPlan(16, 0, 16, "f32")), "kv.num_blocks"),
        (replace(CHAT, kv=KVPlan(16, 4, -16, "f32")), "kv.bytes_per_token"),
        (replace(CHAT, kv=None), "family 'decoder' has no KV cache"),
        (replace(CHAT, architecture={"family": "gpt9"}), "damaged architecture: unknown model family 'gpt9'"),
        (
            replace(CHAT, architecture={"family": "decoder"}),
            "damaged architecture: decoder configuration: num_layers: Field required",
        ),
        (
            replace(CHAT, architecture={**CHAT.architecture, "num_heads": "2"}),
            "decoder configuration: num_heads: Input should be a valid integer",
        ),
        (
            replace(CHAT, architecture={**CHAT.architecture, "num_heads": 0}),
            "decoder configuration: num_heads: Input should be greater than 0",
        ),
        (replace(CHAT, architecture=make_model("x", ENCODER).architecture), "family 'bert' has a KV cache"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_model_is_refused(bundle_path: Path, model, message: str) -> None:
    manifest = open_bundle(bundle_path).manifest
    rewrite_manifest(bundle_path, manifest, models=(model, manifest.models[1]))
    with pytest.raises(BundleIntegrityError, match=message):
        open_bundle(bundle_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "lists no models"),
        ({"budget": {"hbm": -1, "ddr": 0}}, "budget.hbm"),
        ({"budget": {"hbm": 1, "ddr": -1}}, "budget.ddr"),
        ({"budget": {"hbm": "1", "ddr": 1}}, "budget.hbm"),
        (
            {"routes": {"any": {"models": ["chta"]}}},
            "route names 'chta', which is no model; known: chat, chat-alias, embed",
        ),
        (
            {"routes": {"chat-alias": {"models": ["chat"]}}},
            "has the model name, alias or route 'chat-alias' 2 times",
        ),
        (
            {"routes": {"any": {"models": ["chat-alias", "embed"]}}},
            "the models of route 'any' have nothing in common that they can do: chat",
        ),
        (
            {"speculative": [{"draft": "chta", "target": "chat", "tokens": 2}]},
            "speculative names 'chta', which is no model; known: chat, embed",
        ),
        (
            {"speculative": [{"draft": "chat", "target": "chat", "tokens": 2}]},
            "manifest.json has 'chat' as its own draft",
        ),
        (
            {"speculative": [{"draft": "embed", "target": "chat", "tokens": 2}]},
            "'chat' in a speculative pair, and no program of it that verifies 3 tokens of",
        ),
        (
            {"workflows": {"answer": ["chta"]}},
            "workflow names 'chta', which is no model; known: chat, chat-alias, embed",
        ),
        ({"traffic": {"chta": 1.0}}, "traffic names 'chta'"),
        ({"traffic": {"chat": -1.0}}, "traffic"),
        ({"traffic": {"chat": float("inf")}}, "traffic"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_manifest_is_refused(bundle_path: Path, changes: dict, message: str) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    (bundle_path / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    with pytest.raises(BundleIntegrityError, match=message):
        open_bundle(bundle_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (FileEntry(18, "0" * 64, ()), "lists 0 chunk digests for .*, its 18 bytes have 1 chunks"),
        (FileEntry(18, "0" * 63, ("0" * 64,)), "sha256"),
        (FileEntry(18, "Z" * 64, ("0" * 64,)), "sha256"),
        (FileEntry(-1, "0" * 64, ()), "size_bytes"),
    ],
    ids=["chunks", "short digest", "no hex", "negative size"],
)
def test_impossible_file_entry_is_refused(bundle_path: Path, entry: FileEntry, message: str) -> None:
    manifest = open_bundle(bundle_path).manifest
    rewrite_manifest(bundle_path, manifest, files={**manifest.files, "models/chat/tokenizer.json": entry})
    with pytest.raises(BundleIntegrityError, match=message):
        open_bundle(bundle_path)


def test_wrong_chunk_digest_is_found_even_where_the_whole_file_is_right(bundle_path: Path) -> None:
    manifest = open_bundle(bundle_path).manifest
    entry = replace(manifest.files[WEIGHTS], chunk_sha256=("0" * 64,))
    rewrite_manifest(bundle_path, manifest, files={**manifest.files, WEIGHTS: entry})
    with pytest.raises(BundleIntegrityError, match=f"sha256 of chunk 0 expected {'0' * 64}"):
        open_bundle(bundle_path).verify()


# --- the digest that somebody demands ---


def test_right_external_digest_opens(bundle_path: Path) -> None:
    digest = open_bundle(bundle_path).manifest_digest
    assert digest == hashlib.sha256((bundle_path / "manifest.json").read_bytes()).hexdigest()
    assert open_bundle(bundle_path, digest=digest.upper()).manifest_digest == digest
    assert open_bundle(bundle_path, digest=f"sha256:{digest}").manifest_digest == digest


def test_consistently_rewritten_bundle_fails_the_external_digest(bundle_path: Path) -> None:
    digest = open_bundle(bundle_path).manifest_digest
    rewrite_manifest(bundle_path, open_bundle(bundle_path).manifest, name="evil")
    open_bundle(bundle_path)
    with pytest.raises(BundleIntegrityError, match=f"demanded digest: expected {digest}, found [0-9a-f]{{64}}"):
        open_bundle(bundle_path, digest=digest)


def test_external_digest_is_checked_before_the_manifest_is_parsed(bundle_path: Path) -> None:
    (bundle_path / "manifest.json").write_text("junk")
    with pytest.raises(BundleIntegrityError, match="does not have the demanded digest"):
        open_bundle(bundle_path, digest="0" * 64)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63])
def test_malformed_external_digest_is_the_callers_mistake(bundle_path: Path, digest: str) -> None:
    with pytest.raises(ConfigurationError, match="is no SHA-256: 64 hexadecimal digits are needed"):
        open_bundle(bundle_path, digest=digest)

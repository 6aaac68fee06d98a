import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import (
    DECODER,
    ENCODER,
    add_files,
    exported_program,
    make_manifest,
    make_model,
    rewrite_manifest,
    tensors,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.compiler.bundle.digests import CHUNK_BYTES
from plait.compiler.bundle.manifest import (
    FORMAT_VERSION,
    FileEntry,
    KVPlan,
    Manifest,
    ModelEntry,
    StageProgram,
)
from plait.compiler.bundle.placement import Placement, StagePlacement
from plait.compiler.bundle.reader import MAX_MANIFEST_BYTES, Bundle, open_bundle
from plait.compiler.bundle.writer import BundleWriter
from plait.compiler.configuration import Configuration
from plait.errors import (
    BundleError,
    BundleIntegrityError,
    BundleVersionError,
    ConfigurationError,
    ModelNotFoundError,
)

pytestmark = pytest.mark.usefixtures("own_cache")

WEIGHTS = "models/chat/weights.safetensors"
PROGRAM = "models/chat/programs/decode-b1-t1-c64.stablehlo"
FILES = [
    WEIGHTS,
    PROGRAM,
    "models/chat/tokenizer.json",
    "models/chat/chat_template.jinja",
    "models/embed/tokenizer.json",
]


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_bytes_weights_and_programs_come_back(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    assert bundle.read_bytes("models/chat/chat_template.jinja") == b"{{ messages }}"
    assert bundle.read_bytes(PROGRAM) == exported_program()
    weights = bundle.map_weights("chat-alias")
    for name, values in tensors():
        np.testing.assert_array_equal(weights[name], values)


def test_unknown_model_is_named_with_those_there_are(bundle_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="bundle 'agent' has no model 'chta'; it has: chat, embed"):
        open_bundle(bundle_path).map_weights("chta")


# --- what is no bundle ---


def test_missing_path_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none is not a plait bundle: it has no manifest.json; make one with"):
        open_bundle(tmp_path / "none")


def test_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is not a plait bundle"):
        open_bundle(tmp_path / "file")


def test_a_manifest_of_the_format_before_is_read(bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    del manifest["routes"]
    (bundle_path / "manifest.json").write_text(json.dumps({**manifest, "version": 4}))
    assert open_bundle(bundle_path).manifest.routes == {}


@pytest.mark.parametrize(
    ("difference", "remedy"), [(1, "upgrade plait"), (-2, "bundle its models again")], ids=["newer", "older"]
)
def test_another_format_says_what_to_do(bundle_path: Path, difference: int, remedy: str) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    version = FORMAT_VERSION + difference
    (bundle_path / "manifest.json").write_text(json.dumps({**manifest, "version": version, "new_field": 1}))
    with pytest.raises(
        BundleVersionError, match=f"version {version}, this plait reads 4 to {FORMAT_VERSION}; {remedy}"
    ):
        open_bundle(bundle_path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": "zip", "version": 1}', '{"format": "plait-bundle"}', "[" * 100_000],
    ids=["empty", "cut off", "list", "null", "object", "other format", "no version", "nested"],
)
def test_junk_manifest_is_refused(bundle_path: Path, text: str) -> None:
    (bundle_path / "manifest.json").write_text(text)
    with pytest.raises(BundleIntegrityError, match=r"manifest.json is damaged: it is not a plait bundle manifest"):
        open_bundle(bundle_path)


def test_manifest_cut_off_anywhere_is_refused(bundle_path: Path) -> None:
    data = (bundle_path / "manifest.json").read_bytes()
    for size in range(0, len(data) - 1, 101):  # without the newline at the end it would still be whole
        (bundle_path / "manifest.json").write_bytes(data[:size])
        with pytest.raises(BundleIntegrityError, match=r"manifest.json is damaged"):
            open_bundle(bundle_path)


def test_oversized_manifest_is_refused_unread(bundle_path: Path) -> None:
    os.truncate(bundle_path / "manifest.json", MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleIntegrityError, match="larger than 67108864 bytes"):
        open_bundle(bundle_path)


def test_manifest_that_is_a_link_is_refused(bundle_path: Path) -> None:
    (bundle_path / "manifest.json").rename(bundle_path.with_name("elsewhere.json"))
    (bundle_path / "manifest.json").symlink_to(bundle_path.with_name("elsewhere.json"))
    with pytest.raises(BundleIntegrityError, match=r"'manifest.json' of the bundle is not a regular file"):
        open_bundle(bundle_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def mutate(value: object, data: st.DataObject) -> object:
    """Replaces, drops or renames one part somewhere inside a JSON value."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(sorted(value)))
        kind = data.draw(st.integers(0, 7))
        if kind == 0:
            return {name: inner for name, inner in value.items() if name != key}
        if kind == 1:
            return {**value, data.draw(st.text(max_size=5)): value[key]}
        return {**value, key: mutate(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 9)):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], mutate(value[index], data), *value[index + 1 :]]
    return data.draw(JSON)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_manifest_is_refused_or_still_consistent(bundle_path: Path, data: st.DataObject) -> None:
    path = bundle_path / "manifest.json"
    original = path.read_bytes()
    path.write_text(json.dumps(mutate(json.loads(original), data)))
    try:
        bundle = open_bundle(bundle_path)
        for model in bundle.manifest.models:
            assert model.config is not None
            assert model.workspace_bytes >= 0
            assert model.resident_bytes > 0
            assert len(model.shares) == model.num_devices
    except BundleError:
        pass
    finally:
        path.write_bytes(original)


# --- files that are not what the manifest lists ---


@pytest.mark.parametrize("relative", FILES)
def test_any_changed_byte_is_found(bundle_path: Path, relative: str) -> None:
    path = bundle_path / relative
    bundle = open_bundle(bundle_path)
    for position in {0, path.stat().st_size // 2, path.stat().st_size - 1}:
        flip_byte(path, position)
        for check in (bundle.read_bytes, bundle.ensure_verified, lambda name: list(bundle.stream(name))):
            with pytest.raises(BundleIntegrityError, match=rf"'{relative}' is damaged or was changed: sha256"):
                check(relative)
        with pytest.raises(
            BundleIntegrityError, match=rf"'{relative}' .* expected [0-9a-f]{{64}}, found [0-9a-f]{{64}}"
        ):
            bundle.verify()
        flip_byte(path, position)
    bundle.verify()


def test_changed_weights_are_never_mapped(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    flip_byte(bundle_path / WEIGHTS, -1)
    with pytest.raises(BundleIntegrityError, match="copy the bundle again or rebuild it"):
        bundle.map_weights("chat")


def test_file_cut_off_anywhere_is_found_at_opening(bundle_path: Path) -> None:
    data = (bundle_path / WEIGHTS).read_bytes()
    for size in [*range(0, len(data), 37), len(data) - 1]:
        (bundle_path / WEIGHTS).write_bytes(data[:size])
        with pytest.raises(BundleIntegrityError, match=rf"bytes expected {len(data)}, found {size};"):
            open_bundle(bundle_path)


def test_oversized_file_is_found_at_opening(bundle_path: Path) -> None:
    size = (bundle_path / WEIGHTS).stat().st_size
    os.truncate(bundle_path / WEIGHTS, 2**40)  # sparse: reading it would never end
    with pytest.raises(BundleIntegrityError, match=f"bytes expected {size}, found 1099511627776"):
        open_bundle(bundle_path)


def test_missing_file_is_found_at_opening(bundle_path: Path) -> None:
    (bundle_path / WEIGHTS).unlink()
    with pytest.raises(BundleIntegrityError, match=rf"cannot open '{WEIGHTS}': No such file"):
        open_bundle(bundle_path)


def test_directory_in_place_of_a_file_is_refused(bundle_path: Path) -> None:
    (bundle_path / WEIGHTS).unlink()
    (bundle_path / WEIGHTS).mkdir()
    with pytest.raises(BundleIntegrityError, match="is not a regular file: d"):
        open_bundle(bundle_path)


def test_pipe_in_place_of_a_file_is_refused_without_waiting(bundle_path: Path) -> None:
    (bundle_path / WEIGHTS).unlink()
    os.mkfifo(bundle_path / WEIGHTS)
    with pytest.raises(BundleIntegrityError, match="is not a regular file: p"):
        open_bundle(bundle_path)


def test_link_out_of_the_bundle_is_refused(bundle_path: Path) -> None:
    outside = bundle_path.with_name("outside")
    (bundle_path / WEIGHTS).rename(outside)
    (bundle_path / WEIGHTS).symlink_to(outside)
    with pytest.raises(BundleIntegrityError, match="leads out of the bundle"):
        open_bundle(bundle_path)


def test_directory_linked_out_of_the_bundle_is_refused(bundle_path: Path) -> None:
    outside = bundle_path.with_name("outside")
    (bundle_path / "models").rename(outside)
    (bundle_path / "models").symlink_to(outside)
    with pytest.raises(BundleIntegrityError, match="leads out of the bundle"):
        open_bundle(bundle_path)


def test_link_to_itself_is_refused(bundle_path: Path) -> None:
    (bundle_path / WEIGHTS).unlink()
    (bundle_path / WEIGHTS).symlink_to(bundle_path / WEIGHTS)
    with pytest.raises(BundleIntegrityError, match=f"cannot open '{WEIGHTS}'"):
        open_bundle(bundle_path)


def test_link_inside_the_bundle_and_to_the_bundle_are_allowed(bundle_path: Path) -> None:
    (bundle_path / WEIGHTS).rename(bundle_path / "moved")
    (bundle_path / WEIGHTS).symlink_to(bundle_path / "moved")
    bundle_path.with_name("link").symlink_to(bundle_path)
    open_bundle(bundle_path.with_name("link")).verify()


def test_file_that_is_not_listed_is_not_read(bundle_path: Path) -> None:
    (bundle_path / "extra").touch()
    with pytest.raises(BundleIntegrityError, match="does not list the file 'extra'"):
        open_bundle(bundle_path).read_bytes("extra")


# --- manifests that contradict themselves or lie ---

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


# --- streaming ---


@pytest.fixture(scope="module")
def large_content() -> bytes:
    return np.random.default_rng(0).bytes(CHUNK_BYTES + 1000)


@pytest.fixture
def large_bundle(tmp_path: Path, own_cache: Path, large_content: bytes) -> Bundle:
    manifest = make_manifest()
    with BundleWriter(tmp_path / "large.plait") as writer:
        add_files(writer, manifest)
        writer.add_bytes("large", large_content)
        writer.commit(manifest)
    return open_bundle(tmp_path / "large.plait")


def test_stream_yields_the_file_in_chunks(large_bundle: Bundle, large_content: bytes) -> None:
    chunks = [bytes(chunk) for chunk in large_bundle.stream("large")]
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, 1000]
    assert b"".join(chunks) == large_content


def test_stream_stops_before_the_damaged_chunk(large_bundle: Bundle) -> None:
    flip_byte(large_bundle.path / "large", CHUNK_BYTES)
    stream = large_bundle.stream("large")
    assert len(next(stream)) == CHUNK_BYTES
    with pytest.raises(BundleIntegrityError, match="'large' is damaged or was changed: sha256 of chunk 1 expected"):
        next(stream)


def test_stream_notices_a_file_cut_off_under_way(large_bundle: Bundle) -> None:
    stream = large_bundle.stream("large")
    next(stream)
    os.truncate(large_bundle.path / "large", CHUNK_BYTES)
    with pytest.raises(BundleIntegrityError, match="chunks expected 2, found 1"):
        next(stream)


def test_stream_notices_a_file_that_grows_under_way(large_bundle: Bundle) -> None:
    stream = large_bundle.stream("large")
    next(stream)
    with open(large_bundle.path / "large", "ab") as file:
        file.write(bytes(CHUNK_BYTES))
    with pytest.raises(BundleIntegrityError, match="sha256 of chunk 1"):
        next(stream)


def test_verify_reports_every_byte(large_bundle: Bundle) -> None:
    reported: dict[str, int] = {}
    large_bundle.verify(lambda name, size: reported.update({name: reported.get(name, 0) + size}))
    assert reported == {name: entry.size_bytes for name, entry in large_bundle.manifest.files.items()}


# --- the record of what was verified ---


def hashed_bytes(bundle: Bundle, relative: str = WEIGHTS) -> int:
    sizes: list[int] = []
    bundle.ensure_verified(relative, lambda _, size: sizes.append(size))
    return sum(sizes)


def test_file_is_hashed_once(bundle_path: Path) -> None:
    size = (bundle_path / WEIGHTS).stat().st_size
    assert hashed_bytes(open_bundle(bundle_path)) == size
    assert hashed_bytes(open_bundle(bundle_path)) == 0


def test_changed_file_is_hashed_again_though_its_mtime_is_set_back(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    bundle.ensure_verified(WEIGHTS)
    status = (bundle_path / WEIGHTS).stat()
    flip_byte(bundle_path / WEIGHTS, -1)
    os.utime(bundle_path / WEIGHTS, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BundleIntegrityError, match="is damaged or was changed"):
        bundle.ensure_verified(WEIGHTS)


def test_record_counts_for_the_digest_it_was_made_with_only(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    bundle.ensure_verified(WEIGHTS)
    entry = replace(bundle.manifest.files[WEIGHTS], sha256="0" * 64)
    rewrite_manifest(bundle_path, bundle.manifest, files={**bundle.manifest.files, WEIGHTS: entry})
    with pytest.raises(BundleIntegrityError, match=f"sha256 expected {'0' * 64}"):
        open_bundle(bundle_path).ensure_verified(WEIGHTS)


def test_failed_check_leaves_no_record(bundle_path: Path, own_cache: Path) -> None:
    bundle = open_bundle(bundle_path)
    flip_byte(bundle_path / WEIGHTS, -1)
    with pytest.raises(BundleIntegrityError, match="is damaged"):
        bundle.ensure_verified(WEIGHTS)
    assert not list(own_cache.rglob("*.json"))


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff", b"[[["], ids=repr)
def test_damaged_record_is_ignored_and_mended(bundle_path: Path, own_cache: Path, junk: bytes) -> None:
    bundle = open_bundle(bundle_path)
    bundle.ensure_verified(WEIGHTS)
    (record,) = (own_cache / "verified").iterdir()
    record.write_bytes(junk)
    assert hashed_bytes(bundle) > 0
    assert hashed_bytes(bundle) == 0


def test_cache_that_cannot_be_written_costs_a_hash_only(bundle_path: Path, own_cache: Path) -> None:
    own_cache.parent.mkdir(exist_ok=True)
    own_cache.write_text("a file where the directory should be")
    bundle = open_bundle(bundle_path)
    assert hashed_bytes(bundle) > 0
    assert hashed_bytes(bundle) > 0


def test_record_is_not_kept_when_the_file_changes_while_it_is_hashed(bundle_path: Path, own_cache: Path) -> None:
    bundle = open_bundle(bundle_path)
    bundle.ensure_verified(WEIGHTS, lambda *_: flip_byte(bundle_path / WEIGHTS, -1))
    assert not list(own_cache.rglob("*.json"))


def test_manifest_finds_models_by_name_and_alias() -> None:
    manifest: Manifest = make_manifest()
    assert manifest.model("chat") is manifest.model("chat-alias") is manifest.models[0]
    assert manifest.model("chat").config == DECODER

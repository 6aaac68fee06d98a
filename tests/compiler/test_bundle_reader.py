"""Bundles that are read back, and paths, manifests and files that are none."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import DECODER, WEIGHTS, exported_program, flip_byte, make_manifest, tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.compiler.bundle.manifest import FORMAT_VERSION, Manifest
from plait.compiler.bundle.reader import MAX_MANIFEST_BYTES, open_bundle
from plait.errors import BundleError, BundleIntegrityError, BundleVersionError, ModelNotFoundError

pytestmark = pytest.mark.usefixtures("own_cache")

PROGRAM = "models/chat/programs/decode-b1-t1-c64.stablehlo"
FILES = [
    WEIGHTS,
    PROGRAM,
    "models/chat/tokenizer.json",
    "models/chat/chat_template.jinja",
    "models/embed/tokenizer.json",
]


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


def test_manifests_of_the_formats_before_are_read(bundle_path: Path) -> None:
    manifest = json.loads((bundle_path / "manifest.json").read_text())
    del manifest["target"]["compute"]["append_seconds"]
    (bundle_path / "manifest.json").write_text(json.dumps({**manifest, "version": 5}))
    assert open_bundle(bundle_path).manifest.target.compute.append_seconds == 0
    del manifest["routes"]
    (bundle_path / "manifest.json").write_text(json.dumps({**manifest, "version": 4}))
    assert open_bundle(bundle_path).manifest.routes == {}


@pytest.mark.parametrize(
    ("difference", "remedy"), [(1, "upgrade plait"), (-3, "bundle its models again")], ids=["newer", "older"]
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


def test_manifest_finds_models_by_name_and_alias() -> None:
    manifest: Manifest = make_manifest()
    assert manifest.model("chat") is manifest.model("chat-alias") is manifest.models[0]
    assert manifest.model("chat").config == DECODER

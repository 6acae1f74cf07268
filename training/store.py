"""Where files lie: a directory that is mounted here, or a prefix of an object store (`s3://`, `gs://`).

Endpoints and keys come from the environment and the machine, as for any client of these stores
(AWS_ENDPOINT_URL, AWS_PROFILE, an instance's role, GOOGLE_APPLICATION_CREDENTIALS); a place is a
name without secrets, which may be written down and sent around. A store that does not answer is
asked again for `patience_s()`. An object appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

_OBJECT_STORES = ("s3", "gs")
_CHUNK_BYTES = 8 * 2**20
_ENVIRONMENT = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "STORAGE_EMULATOR_HOST",
    "AWS_PROFILE",
)
# What no waiting mends, as the stores' clients say it.
_PERMANENT = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "NO_SUCH_BUCKET",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "No space left on device",
    "Quota",
    "File too large",
)


class StorageError(OSError):
    """A store that cannot be read or written, after all patience."""


def patience_s(default: float = 120.0) -> float:
    """Seconds for which a store that does not answer is asked again (`THAW_STORAGE_PATIENCE_S`)."""
    return float(os.environ.get("THAW_STORAGE_PATIENCE_S", default))


@dataclass(frozen=True)
class Place:
    """A directory, or what corresponds to it in an object store. Compare and pass around freely."""

    uri: str
    """An absolute path, or `SCHEME://BUCKET/PREFIX`."""

    @classmethod
    def parse(cls, text: str, setting: str = "--storage") -> Place:
        """The place that a user's `text` names: a directory, or a `file://`, `s3://` or `gs://` URI.

        Raises:
            ValueError: where it is none; it starts with `setting`.
        """
        text = text.removeprefix("file://")
        if not text.strip():
            raise ValueError(f"{setting}: must not be empty; give a directory, such as ./runs")
        if not text.isprintable():
            raise ValueError(f"{setting}: {text!r} has control characters in it")
        if "://" not in text:
            return cls(os.path.abspath(os.path.expanduser(text)))
        parts = urlsplit(text)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                f"{setting}: {parts.scheme}://{parts.hostname or ''} must be a bucket and a prefix alone; "
                "keys and endpoints come from the environment (AWS_PROFILE, AWS_ENDPOINT_URL)"
            )
        if parts.scheme not in _OBJECT_STORES:
            raise ValueError(
                f"{setting}: {parts.scheme}:// is not a store that Thaw knows; "
                "give a directory, or a file://, s3:// or gs:// URI"
            )
        names = [name for name in parts.path.split("/") if name]
        if not parts.netloc or ".." in names or "." in names:
            raise ValueError(f"{setting}: {text} must be {parts.scheme}://BUCKET/PREFIX")
        return cls("/".join([f"{parts.scheme}://{parts.netloc}", *names]))

    def __truediv__(self, name: str) -> Place:
        """A child; `name` may have slashes in it, but cannot lead out."""
        parts = PurePosixPath(name).parts
        assert parts, "an empty name"
        if ".." in parts or parts[0] == "/" or not name.isprintable():
            raise ValueError(f"{name!r} leads out of {self.uri}")
        return Place(f"{self.uri.rstrip('/')}/{'/'.join(parts)}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part."""
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> Place:
        """All but the last part."""
        return Place(self.uri.rpartition("/")[0])

    @property
    def is_local(self) -> bool:
        """Whether it is a directory on a file system of this machine."""
        return "://" not in self.uri

    # One object

    def read(self, *, patience: float | None = None) -> bytes:
        """The contents of the object that lies here.

        Args:
            patience: seconds for which a store that is away is asked again; `patience_s()` where unset.

        Raises:
            FileNotFoundError: if there is none.
            StorageError: if it cannot be read.
        """

        def call() -> bytes:
            fs, path = self._opened()
            with fs.open_input_stream(path) as stream:
                return bytes(stream.readall())

        return self._patiently("read", call, patience)

    def write(self, data: bytes, *, patience: float | None = None) -> None:
        """Put an object here, in place of another: whole, or not at all. `patience` as in `read`.

        Raises:
            StorageError: if it cannot be written.
        """
        self._patiently("write", lambda: self._put(data), patience)

    def upload(self, file: Path, *, patience: float | None = None) -> None:
        """As `write`, from a local file of any size."""

        def call() -> None:
            if self.is_local:
                self._put(file)
                return
            fs, path = self._opened()
            with file.open("rb") as source, fs.open_output_stream(path) as stream:
                while chunk := source.read(_CHUNK_BYTES):
                    stream.write(chunk)

        self._patiently("write", call, patience)

    def download(self, file: Path) -> None:
        """Copy the object that lies here to a local file, which appears whole.

        Raises:
            FileNotFoundError: if there is none.
            StorageError: if it cannot be read.
        """
        draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")

        def call() -> None:
            fs, path = self._opened()
            with fs.open_input_stream(path) as stream, draft.open("wb") as target:
                while chunk := stream.read(_CHUNK_BYTES):
                    target.write(chunk)

        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._patiently("read", call)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)

    def exists(self) -> bool:
        """Whether an object lies here, or below."""
        from pyarrow.fs import FileType

        def call() -> bool:
            fs, path = self._opened()
            return bool(fs.get_file_info(path).type != FileType.NotFound)

        return self._patiently("read", call)

    # What lies below

    def files(self) -> dict[str, int]:
        """The size in bytes of every object below, by its path from here."""
        from pyarrow.fs import FileSelector, FileType

        def call() -> dict[str, int]:
            fs, path = self._opened()
            found = fs.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
            start = len(path) + 1
            return {info.path[start:]: info.size for info in found if info.type == FileType.File}

        return self._patiently("list", call)

    def children(self) -> list[str]:
        """The names right below, sorted."""
        if self.uri.startswith("gs://"):  # where a prefix is listed only if it has an object of its own
            return sorted({name.partition("/")[0] for name in self.files()})
        from pyarrow.fs import FileSelector

        def call() -> list[str]:
            fs, path = self._opened()
            return sorted(
                info.base_name for info in fs.get_file_info(FileSelector(path, allow_not_found=True))
            )

        return self._patiently("list", call)

    def remove(self) -> None:
        """Remove the object that lies here, if one does."""

        def call() -> None:
            fs, path = self._opened()
            fs.delete_file(path)

        with suppress(FileNotFoundError):
            self._patiently("remove", call)

    def remove_tree(self) -> None:
        """Remove all objects below, if there are any."""
        if self.is_local:
            shutil.rmtree(self.uri, ignore_errors=True)
            return

        def call() -> None:
            fs, path = self._opened()
            try:
                fs.delete_dir(path)
            except OSError as error:
                if "No such directory" not in str(error):  # as gs:// says it
                    raise

        with suppress(FileNotFoundError):
            self._patiently("remove", call)

    # Inside

    def _put(self, source: bytes | Path) -> None:
        if not self.is_local:
            assert isinstance(source, bytes)
            fs, path = self._opened()
            with fs.open_output_stream(path) as stream:
                stream.write(source)
            return
        target = Path(self.uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with draft.open("wb") as file:
                if isinstance(source, bytes):
                    file.write(source)
                else:
                    with source.open("rb") as data:
                        shutil.copyfileobj(data, file, _CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def _opened(self) -> tuple[Any, str]:
        scheme, _, path = ("file", "", self.uri) if self.is_local else self.uri.partition("://")
        # A client does not survive a fork, nor a change of what it was made from.
        return _file_system(scheme, os.getpid(), tuple(map(os.environ.get, _ENVIRONMENT))), path

    def _patiently(self, verb: str, call: Callable[[], T], patience: float | None = None) -> T:
        patience = patience_s() if patience is None else patience
        deadline = time.monotonic() + patience
        pause_s = 0.2
        while True:
            try:
                return call()
            except FileNotFoundError:
                raise
            except OSError as error:
                reason = " ".join(str(error).split())
                hopeless = self.is_local or any(sign in reason for sign in _PERMANENT)
                if hopeless or time.monotonic() + pause_s > deadline:
                    waited = "" if hopeless else f" (asked for {patience:g} s)"
                    raise StorageError(f"{self.uri}: cannot {verb}{waited}: {_shortened(reason)}") from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)


@cache
def _file_system(scheme: str, pid: int, environment: tuple[str | None, ...]) -> Any:
    """pyarrow's client of a kind of store."""
    from pyarrow import fs

    s3_endpoint, endpoint, region, default_region, emulator, _ = environment
    if scheme == "file":
        return fs.LocalFileSystem()
    if scheme == "gs":
        options: dict[str, Any] = {"retry_time_limit": timedelta(seconds=15)}
        if emulator:
            parts = urlsplit(emulator if "://" in emulator else f"http://{emulator}")
            options |= {"anonymous": True, "scheme": parts.scheme, "endpoint_override": parts.netloc}
        return fs.GcsFileSystem(**options)
    options = {"connect_timeout": 5.0, "request_timeout": 30.0, "region": region or default_region}
    if s3_endpoint or endpoint:
        parts = urlsplit(s3_endpoint or endpoint or "")
        options |= {"scheme": parts.scheme, "endpoint_override": parts.netloc}
    # Small objects take one request, and fail at once where they fail.
    return fs.S3FileSystem(allow_delayed_open=True, **options)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= 300 else f"{reason[:297]}..."


# Trees with checksums: what was put is what comes back, or nothing is.


@contextmanager
def near(place: Place) -> Iterator[Path]:
    """A local directory to work in for what belongs to `place`: itself, or one that is gone afterwards."""
    if place.is_local:
        yield Path(place.uri)
        return
    with tempfile.TemporaryDirectory(prefix="thaw-") as scratch:
        yield Path(scratch)

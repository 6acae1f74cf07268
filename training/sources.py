"""Where examples come from: files that Thaw opens itself, or a data set with splits.

Both are read by `datasets`, which is imported only when rows are really read: with a warm
cache (`training/data.py`) nothing here needs it.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol

from training.config import DataConfig

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Only an empty field is missing: "NA", "null" and "None" are words.
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),
    ".tsv": ("csv", {"keep_default_na": False, "na_values": [""], "sep": "\t"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}

_CHUNK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one split, as columns."""

    columns: dict[str, list[Any]]
    parts: tuple[tuple[str, int], ...]
    """Where they come from, in order: a file's path and how many rows it gave."""

    def __len__(self) -> int:
        return sum(count for _, count in self.parts)

    def place(self, row: int) -> str:
        """A row, counted from 0, in the user's terms: file, and row counted from 1 in that file."""
        ends = accumulate(count for _, count in self.parts)
        for (path, count), end in zip(self.parts, ends, strict=True):
            if row < end:
                return f"{path}, row {row - end + count + 1}"
        raise IndexError(row)


class Source(Protocol):
    """One split that can be read."""

    def digest(self) -> str:
        """Changes when the contents change."""

    def read(self, columns: dict[str, str], limit: int | None) -> Rows:
        """The first `limit` rows. `columns`: names, each with the setting that gave it.

        Raises ValueError where it cannot be read, a column is missing or a value is null.
        """


def open_source(data: DataConfig, split: str, cache: Path) -> Source | None:
    """The source of `split` (train, validation or test); None for a test set that is not given.

    Raises ValueError where it is not there.
    """
    reference: str | None = getattr(data, split)
    if reference is None:
        return None
    if data.name is None:
        return FileSource(setting=f"data.{split}", files=_files(f"data.{split}", reference))
    dataset = _load_dataset(data, f"data.{split}", reference, cache)
    return DatasetSource(name=f"{data.name}[{reference}]", setting=f"data.{split}", dataset=dataset)


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """CSV, TSV, JSON lines or Parquet files, one after the other."""

    setting: str
    files: tuple[Path, ...]

    def digest(self) -> str:
        """Hash of the contents; where the files lie does not matter."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                digest.update(path.suffix.lower().encode() + hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def read(self, columns: dict[str, str], limit: int | None) -> Rows:
        """See `Source`."""
        parts: list[tuple[str, dict[str, list[Any]]]] = []
        remaining = limit
        for path in self.files:
            if remaining == 0:
                break
            part = _take(self._batches(path), columns, remaining, path=str(path))
            parts.append((str(path), part))
            if remaining is not None:
                remaining -= len(next(iter(part.values())))
        return _joined(self.setting, parts)

    def _batches(self, path: Path) -> Iterator[tuple[dict[str, list[Any]], Any]]:
        if path.stat().st_size == 0:
            return
        import datasets

        reader, options = _READERS[path.suffix.lower()]
        # A stream, so that nothing is copied; lock files of the reader go where they vanish.
        with _quiet(), tempfile.TemporaryDirectory() as scratch:
            try:
                stream = datasets.load_dataset(
                    reader,
                    data_files=[glob.escape(str(path.absolute()))],
                    split="train",
                    streaming=True,
                    cache_dir=scratch,
                    **options,
                )
                for batch in stream.iter(batch_size=_CHUNK_ROWS):
                    yield batch, stream.features
            except StopIteration:
                return
            except Exception as error:  # each reader has its own set of errors
                raise ValueError(
                    f"{self.setting}: {path} cannot be read as {path.suffix.lower()[1:].upper()}: "
                    f"{_first_line(error)}"
                ) from error


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """One split of a `datasets` data set."""

    name: str
    setting: str
    dataset: Any

    def digest(self) -> str:
        """The fingerprint that `datasets` keeps."""
        return str(self.dataset._fingerprint)

    def read(self, columns: dict[str, str], limit: int | None) -> Rows:
        """See `Source`."""
        batches = ((batch, self.dataset.features) for batch in self.dataset.iter(batch_size=_CHUNK_ROWS))
        return _joined(self.setting, [(self.name, _take(batches, columns, limit, path=self.name))])


def _take(
    batches: Iterator[tuple[dict[str, list[Any]], Any]],
    columns: dict[str, str],
    limit: int | None,
    *,
    path: str,
) -> dict[str, list[Any]]:
    taken: dict[str, list[Any]] = {column: [] for column in columns}
    for i, (batch, features) in enumerate(batches):
        if i == 0:
            _check_columns(list(batch), columns, path)
        rows = len(next(iter(batch.values())))
        for column, values in taken.items():
            new = batch.get(column, [None] * rows)
            names = getattr((features or {}).get(column), "names", None)
            # Class labels are stored as indices; -1 says there is none.
            values += new if names is None else [None if v is None or v < 0 else names[v] for v in new]
        if limit is not None and len(next(iter(taken.values()))) >= limit:
            break
    return {column: list(islice(values, limit)) for column, values in taken.items()}


def _joined(setting: str, parts: Sequence[tuple[str, dict[str, list[Any]]]]) -> Rows:
    columns: dict[str, list[Any]] = {}
    counts: list[tuple[str, int]] = []
    for path, part in parts:
        counts.append((path, len(next(iter(part.values())))))
        for column, values in part.items():
            columns.setdefault(column, []).extend(values)
    rows = Rows(columns=columns, parts=tuple(counts))
    if len(rows) == 0:
        where = ", ".join(path for path, _ in parts)
        raise ValueError(f"{setting}: {where} has no rows; give a file with at least one example")
    for column, values in columns.items():
        if None in values:
            place = rows.place(values.index(None))
            raise ValueError(f"{setting}: {place}: column {column!r} is empty; fill it in or drop the row")
    return rows


def _check_columns(present: list[str], columns: dict[str, str], path: str) -> None:
    for column, setting in columns.items():
        if column not in present:
            raise ValueError(
                f"{setting}: {path} has no column {column!r}; "
                f"its columns are {', '.join(map(str, present))}{_did_you_mean(column, present)}"
            )


def _files(setting: str, reference: str) -> tuple[Path, ...]:
    path = Path(reference).expanduser()
    kinds = ", ".join(_READERS)
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise ValueError(f"{setting}: {path} is not a kind of file that Thaw reads; use one of {kinds}")
        return (path,)
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            raise ValueError(
                f"{setting}: {path} was written by `save_to_disk`; "
                f"give the data set as data.name and its splits as data.train and data.validation"
            )
        files = sorted(
            child
            for child in path.iterdir()
            if child.suffix.lower() in _READERS and child.name[0] not in "._"
        )
        if not files:
            raise ValueError(f"{setting}: directory {path} has no file that Thaw reads ({kinds})")
        return tuple(files)
    siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    raise ValueError(
        f"{setting}: {path.absolute()} does not exist"
        + (_did_you_mean(path.name, siblings) or "; give a file or directory, or a hub data set as data.name")
    )


def _load_dataset(data: DataConfig, setting: str, split: str, cache: Path) -> Any:
    import datasets

    assert data.name is not None
    path = Path(data.name).expanduser()
    try:
        with _quiet():
            if not ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
                return datasets.load_dataset(
                    str(path) if path.is_dir() else data.name,
                    data.subset,
                    split=split,
                    cache_dir=str(cache / "datasets"),
                )
            saved = datasets.load_from_disk(str(path))
    except Exception as error:  # hub, network and readers each have their own set of errors
        where = data.name if data.subset is None else f"{data.name} ({data.subset})"
        raise ValueError(
            f"{setting}: split {split!r} of {where} cannot be read: {_first_line(error)}"
        ) from error
    if not isinstance(saved, datasets.DatasetDict):
        raise ValueError(
            f"data.name: {path} is a single data set without splits; "
            f"save a `DatasetDict` with a split for training and one for validation"
        )
    if split not in saved:
        raise ValueError(
            f"{setting}: {path} has no split {split!r}; "
            f"its splits are {', '.join(saved)}{_did_you_mean(split, list(saved))}"
        )
    return saved[split]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and log lines: what goes wrong is said in our own messages."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _did_you_mean(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

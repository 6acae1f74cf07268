"""A ledger in a database: any storage that Optuna knows by a URL, in place of the journal file.

The URL stands in the sweep file, so it may name secrets only by reference: `${NAME}` is taken from the
environment where the database is opened, and appears nowhere else.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import optuna
from optuna.storages import BaseStorage

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = ("password", "passwd", "secret", "token")
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0


def _filled(text: str, *, quoted: bool = False) -> str:
    """`text` with what its references stand for."""

    def value(found: re.Match[str]) -> str:
        return quote(os.environ[found[1]], safe="") if quoted else os.environ[found[1]]

    return _REFERENCE.sub(value, text)


def complaint(url: str) -> str | None:
    """What is wrong with a URL as a sweep file gives it, without a word of what it says; None for nothing."""
    try:
        parts = urlsplit(url)
        secrets = [parts.password]
        for name, values in parse_qs(parts.query).items():
            secrets += values if any(word in name.lower() for word in _SECRET) else []
    except ValueError:
        return "must be a URL, such as sqlite:////data/study.db"
    if not parts.scheme or "://" not in url:
        return "must be a URL, such as sqlite:////data/study.db or postgresql://me:${PASSWORD}@host/db"
    if any(secret is not None and not _REFERENCE.fullmatch(secret) for secret in secrets):
        return "must not hold a password; set it in the environment, and write ${NAME} in its place"
    return None


@dataclass(kw_only=True)
class Database:
    """One study in a database.

    What is written reaches it entry by entry, so a kill may come between two entries that belong together.
    """

    url: str
    """With references, as in the sweep file."""
    study: str
    """The study's name: others may be in the same database."""
    patience_s: float = 0.0
    """How long an operation is tried again while the database does not answer."""
    overtaken: bool = field(default=False, init=False)
    atomic: bool = field(default=False, init=False)
    away: bool = field(default=False, init=False)

    def __str__(self) -> str:
        return f"study {self.study} in {self.url}"

    def load(self) -> BaseStorage:
        """Optuna's storage.

        Raises:
            ValueError: a variable is not set, or there is no such database.
        """
        resolved = self._resolved()
        try:
            storage = optuna.storages.get_storage(resolved)
        except (ImportError, ValueError) as error:
            raise ValueError(
                f"search.storage: {self.url}: {type(error).__name__}; is its driver installed?"
            ) from None
        except Exception as error:  # whatever the driver raises may hold the URL, and with it the password
            raise ValueError(
                f"search.storage: {self.url} cannot be opened ({type(error).__name__})"
            ) from None
        for name in _OPERATIONS:
            setattr(storage, name, self._patient(getattr(storage, name)))
        return storage

    def begun(self) -> bool:
        """Whether the study is there."""
        return any(study.study_name == self.study for study in self.load().get_all_studies())

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nothing: each entry is written at once."""
        yield

    def _resolved(self) -> str:
        missing = [name for name in _REFERENCE.findall(self.url) if name not in os.environ]
        if missing:
            raise ValueError(f"search.storage: {', '.join(missing)} is not set in the environment")
        url, query, options = self.url.partition("?")
        user, at, _ = urlsplit(url).netloc.rpartition("@")
        if at:  # what it stands for may have characters that mean something in a URL
            url = url.replace(f"{user}@", f"{_filled(user, quoted=True)}@", 1)
        return f"{_filled(url)}{query}{_filled(options, quoted=True)}"

    def _patient(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*args: Any, **kwargs: Any) -> Any:
            began, wait_s = time.monotonic(), _FIRST_WAIT_S
            while True:
                try:
                    return operation(*args, **kwargs)
                except Exception as error:
                    if not _passing(error):
                        raise
                    if time.monotonic() - began >= self.patience_s:
                        waited = f", for {self.patience_s:.0f} s now" if self.patience_s else ""
                        name = type(error).__name__
                        raise OSError(f"{self} cannot be reached{waited} ({name})") from None
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

        return tried


_OPERATIONS = (
    "create_new_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial_id_from_study_id_trial_number",
    "get_trial",
    "get_all_trials",
)


def _passing(error: Exception) -> bool:
    """Whether an error is the connection's, and may be gone the next time."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return True
    import sqlalchemy.exc

    return isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)

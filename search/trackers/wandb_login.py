"""The W&B key: where it is found, and whether the server takes it. Without importing wandb.

A key is referred to, never copied: the environment, a file, or what `wandb login` left in `~/.netrc`.
"""

from __future__ import annotations

import base64
import json
import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from search.trackers.base import WandbConfig

_TIMEOUT_S = 10.0
_MAX_BYTES = 4096


def key_in(file: str) -> str:
    """The key that `file` holds.

    Raises:
        ValueError: if there is no such file, or what is in it is no key.
    """
    path = Path(file).expanduser()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"tracking.wandb.api_key_file: {file} is too large to be a key")
        text = path.read_text().strip()
    except OSError as error:
        raise ValueError(f"tracking.wandb.api_key_file: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"tracking.wandb.api_key_file: {file} must hold the key and nothing else")
    return text


def check(settings: WandbConfig | None) -> tuple[bool, str] | None:
    """Whether W&B takes the key that is at hand, and what there is to say; None where it is off."""
    settings = settings or WandbConfig()
    if settings.mode in ("disabled", "offline"):
        return None
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    try:
        found = _key(settings, server)
    except ValueError as error:
        return False, str(error)
    if found is None:
        return False, "there is no key"
    key, where = found
    asked = urllib.request.Request(
        f"{server}/graphql",
        data=json.dumps({"query": "query { viewer { username } }"}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}",
        },
    )
    try:
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:
            viewer = (json.loads(answer.read(100_000)).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        return False, f"{server} refuses the key of {where} ({error.code})"
    except (OSError, ValueError, AttributeError) as error:
        return False, f"{server} cannot be reached: {getattr(error, 'reason', error)}"
    if not viewer:
        return False, f"{server} does not know the key of {where}"
    return True, f"{server} takes the key of {where}, as {viewer.get('username')}"


def _key(settings: WandbConfig, server: str) -> tuple[str, str] | None:
    """The key, and where it was found."""
    if settings.api_key_file is not None:
        return key_in(settings.api_key_file), settings.api_key_file
    if key := os.environ.get("WANDB_API_KEY"):
        return key, "WANDB_API_KEY"
    file = os.environ.get("NETRC", str(Path.home() / ".netrc"))
    try:
        logins, parts = netrc.netrc(file), urlsplit(server)
        login = logins.authenticators(parts.netloc) or logins.authenticators(parts.hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return (login[2], file) if login and login[2] else None

"""Where a key is found, what the server says to it, and that it is never said itself."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from search.trackers import WandbConfig
from search.trackers.wandb_login import check, key_in

KEY = "a" * 20 + "planted" + "b" * 13


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        good = self.headers["Authorization"] == f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": {"viewer": {"username": "ada"}}}).encode() if good else b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    listening = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listening.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield url
    listening.shutdown()


def test_the_key_is_found_and_tried(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(WandbConfig()) == (False, "there is no key")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n login user\n password {KEY}\n")
    assert check(WandbConfig()) == (True, f"{server} takes the key of {tmp_path / 'netrc'}, as ada")
    monkeypatch.setenv("WANDB_API_KEY", "wrong" * 8)
    assert check(WandbConfig()) == (False, f"{server} refuses the key of WANDB_API_KEY (401)")
    (tmp_path / "key").write_text(f"{KEY}\n")
    settings = WandbConfig(api_key_file=str(tmp_path / "key"))
    assert check(settings) == (True, f"{server} takes the key of {tmp_path / 'key'}, as ada")
    assert check(WandbConfig(mode="offline")) is None
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    found = check(settings)
    assert found is not None
    assert not found[0]
    assert "cannot be reached" in found[1]
    assert KEY not in found[1]


@pytest.mark.parametrize("content", [b"", b"two words", b"\x80\x81", b"k" * 5000, b"a\x00b"])
def test_what_is_no_key_is_refused_without_being_said(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^tracking\.wandb\.api_key_file: ") as error:
        key_in(str(file))
    assert "two words" not in str(error.value)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        key_in(str(tmp_path / "gone"))

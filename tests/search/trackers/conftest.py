"""A W&B server small enough to read, a reader of the files wandb writes, and a clean environment."""

from __future__ import annotations

import json
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "0123456789abcdef" * 3  # no real one looks like it


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory of our own, no W&B settings, and no server to reach."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_DIR", str(home))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return home


@pytest.fixture
def key(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A W&B key in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return KEY


@pytest.fixture
def processes(home: Path) -> Callable[[], dict[int, str]]:
    """Lists the live processes that were started by this test, by the home they were given."""

    def living() -> dict[int, str]:
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if f"HOME={home}".encode() in environment and command:  # a zombie has no command
                found[int(process.name)] = command
        return found

    return living


class FakeWandb(ThreadingHTTPServer):
    """Speaks what wandb-core asks for, and keeps what arrives, by run id."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.hung = threading.Event()
        self.requests: list[str] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, list[str]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of a run."""
        return [json.loads(line) for line in self.lines.get(run_id, [])]

    def config(self, run_id: str) -> dict[str, Any]:
        """The config of a run, without wandb's own part."""
        config = json.loads(self.runs[run_id]["config"])
        return {name: item["value"] for name, item in config.items() if name != "_wandb"}

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "someone"}}
        name = variables.get("name")
        match match.group(1) if match else "":
            case "UpsertBucket":
                new = name not in self.runs
                run = self.runs.setdefault(str(name), {})
                run.update({key: value for key, value in variables.items() if value is not None})
                bucket = {
                    "id": f"bucket-{name}", "name": name, "displayName": run.get("displayName"),
                    "config": run.get("config"), "historyLineCount": len(self.lines.get(str(name), [])),
                    "project": project,
                }  # fmt: skip
                return {"upsertBucket": {"bucket": bucket, "inserted": new}}
            case "RunResumeStatus":
                if name not in self.runs:
                    return {"model": {**project, "bucket": None}}
                lines = self.lines.get(name, [])
                bucket = {
                    "id": f"bucket-{name}", "name": name, "displayName": self.runs[name].get("displayName"),
                    "summaryMetrics": json.dumps(self.summaries.get(name, {})),
                    "historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0,
                    "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]",
                    "config": self.runs[name].get("config"), "tags": [], "notes": None,
                    "wandbConfig": json.dumps({"t": {"1": []}}),  # without it wandb takes the run for new
                }  # fmt: skip
                return {"model": {**project, "bucket": bucket}}
            case "CreateRunFiles":
                files = [
                    {"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]
                ]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def file_stream(self, run_id: str, body: dict[str, Any]) -> None:
        files = body.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            self.lines.setdefault(run_id, [])[history["offset"] :] = history["content"]
        if summary := files.get("wandb-summary.json"):
            self.summaries[run_id] = json.loads(summary["content"][-1])
        if body.get("complete"):
            self.exit_codes[run_id] = body["exitcode"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeWandb

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(self.path)
        if self.server.hung.is_set():
            threading.Event().wait(60)
        answer: dict[str, Any] = {}
        if self.path.startswith("/graphql"):
            asked = json.loads(body)
            answer = {"data": self.server.graphql(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.file_stream(self.path.split("/")[-2], json.loads(body))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST


@pytest.fixture
def server(key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """A W&B server on this machine, and a key for it."""
    server = FakeWandb()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def read_run() -> Callable[[Path], dict[str, Any]]:
    """Reads a `.wandb` file, or the one in a run's directory: config, history, summary and so on."""
    return _read_run


def _read_run(path: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2 as pb

    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "metrics": [], "exit_code": None}
    for data in _log_records(path if path.is_file() else next(path.glob("*.wandb"))):
        record = pb.Record()
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run |= {
                    "id": record.run.run_id,
                    "group": record.run.run_group,
                    "name": record.run.display_name,
                }
                run |= {"project": record.run.project, "tags": list(record.run.tags)}
                run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                run["history"].append(
                    {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in record.history.item
                    }
                )
            case "summary":
                run["summary"] |= {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.summary.update
                }
            case "metric":
                run["metrics"].append(
                    (record.metric.name or record.metric.glob_name, record.metric.step_metric)
                )
            case "exit":
                run["exit_code"] = record.exit.exit_code
    return run


def _log_records(path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, each chunk with CRC, length and type.

    https://github.com/google/leveldb/blob/main/doc/log_format.md; wandb puts 7 bytes in front.
    """
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, last
            yield record
            record = b""

"""A real S3 server on this machine, with the faults that a test asks for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Fault = Callable[[str, str], str | None]
"""Method and path of a request -> `503`, `reset`, `slow`, or nothing wrong."""

SLOW_S = 0.5


@dataclass
class ObjectStore:
    """moto's S3 server behind a layer that fails on demand."""

    fault: Fault | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def start(self) -> None:
        """Listen on a free port, in threads of this process."""
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                """Nothing."""

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()

    def environment(self) -> dict[str, str]:
        """What leads a client here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "planted-secret-of-the-store",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        """An empty bucket."""
        import boto3

        boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        ).create_bucket(Bucket=name)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        wrong = self.fault(method, path) if self.fault is not None else None
        if wrong == "503":
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [
                b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            ]
        if wrong == "reset":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if wrong == "slow":
            time.sleep(SLOW_S)
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

"""Object storage on this machine, with faults to order: a moto server, and a server in front of it or alone."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import pytest

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.'
    b"</Message></Error>"
)
DENIED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>InvalidAccessKeyId</Code><Message>The AWS Access Key Id you '
    b"provided does not exist in our records.</Message></Error>"
)
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "server", "date"}


@dataclass
class Storage:
    """A server's address, what it serves by itself, and how it is to misbehave."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """By path: bucket/key. Served where nothing stands behind it."""
    behind: str | None = None
    """Address of the server that requests go on to."""
    storm: int = 0
    """So many requests to come get 503 SlowDown; -1: all."""
    every: int = 0
    """Each so-many-th request gets 503 SlowDown; 0: none."""
    cut: int = 0
    """So many answers to come end halfway through their body."""
    still: int = 0
    """So many requests to come get no answer for a minute."""
    denied: bool = False
    """All requests get 403."""
    delay_s: float = 0.0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    """Method, path and range of each."""
    at_once: int = 0
    """Requests in hand."""
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str, part: str | None) -> str | None:
        """What is to go wrong with this request."""
        with self.lock:
            self.requests.append((method, path, part))
            if self.denied:
                return "denied"
            if self.storm:
                self.storm -= self.storm > 0
                return "slow down"
            if self.every and len(self.requests) % self.every == 0:
                return "slow down"
            if self.still:
                self.still -= 1
                return "still"
            if self.cut and method == "GET":
                self.cut -= 1
                return "cut"
        return None

    def count(self, more: int) -> None:
        with self.lock:
            self.at_once += more
            self.most_at_once = max(self.most_at_once, self.at_once)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body, as they should be."""
        if self.behind is not None:
            address = urlsplit(self.behind)
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
            connection.request(method, path, body or None, headers)
            reply = connection.getresponse()
            content = reply.read()
            kept = {k: v for k, v in reply.getheaders() if k.lower() not in HOP_BY_HOP}
            connection.close()
            return reply.status, kept, content
        name = unquote(urlsplit(path).path).strip("/")
        whole = self.objects.get(name)
        if whole is None:
            is_bucket = name and any(other.startswith(f"{name}/") for other in self.objects)
            return 200 if is_bucket and method == "HEAD" else 404, {}, b""
        span = headers.get("Range", headers.get("range"))
        if span is None:
            return 200, {"Content-Length": str(len(whole)), "Accept-Ranges": "bytes"}, whole
        first, last = span.removeprefix("bytes=").split("-")
        if int(first) >= len(whole):
            return 416, {"Content-Length": "0"}, b""
        part = whole[int(first) : min(int(last or len(whole)), len(whole) - 1) + 1]
        told = f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}"
        return 206, {"Content-Length": str(len(part)), "Content-Range": told, "Accept-Ranges": "bytes"}, part


def _handler(storage: Storage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each body waits 40 ms for its headers to be acknowledged

        def handle_any(self) -> None:
            storage.count(1)
            try:
                self.handle_one()
            finally:
                storage.count(-1)

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = storage.fault(self.command, self.path, self.headers.get("Range"))
            if storage.delay_s:
                time.sleep(storage.delay_s)
            match fault:
                case "still":
                    time.sleep(60)
                    self.close_connection = True
                    return
                case "slow down":
                    status, headers, content = 503, {"Content-Length": str(len(SLOW_DOWN))}, SLOW_DOWN
                case "denied":
                    status, headers, content = 403, {"Content-Length": str(len(DENIED))}, DENIED
                case _:
                    status, headers, content = storage.answer(self.command, self.path, dict(self.headers), body)
            self.send_response_only(status)
            headers.setdefault("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault == "cut":
                content = content[: len(content) // 2]
                self.close_connection = True
            self.wfile.write(content)
            if fault == "cut":
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Clients that gave up are no news."""


@contextmanager
def serving(behind: str | None = None) -> Generator[Storage, None, None]:
    """A server in this process, alone or in front of another."""
    storage = Storage(behind=behind)
    server = _Server(("127.0.0.1", 0), _handler(storage))
    storage.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def moto() -> Generator[str, None, None]:
    """Address of an S3 server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "import sys; from moto.server import main; main(sys.argv[1:])"]
    process = subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, "moto's server has ended"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have S3 at `url`, for this process and those that it starts."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture(name="plain_storage")
def fixture_plain_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """What little of S3 reading takes: `objects`, in this process."""
    with serving() as storage:
        use(monkeypatch, storage.url)
        yield storage


@pytest.fixture(name="moto_url", scope="session")
def fixture_moto_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture(name="bucket")
def fixture_bucket(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Storage, Any]]:
    """moto's S3 behind a server that can misbehave, and a boto3 client past it; bucket `videos` is empty."""
    import boto3

    with serving(behind=moto_url) as storage:
        use(monkeypatch, storage.url)
        client = boto3.client("s3", endpoint_url=moto_url)
        client.create_bucket(Bucket="videos")
        yield storage, client
        urlopen(Request(f"{moto_url}/moto-api/reset", method="POST")).close()

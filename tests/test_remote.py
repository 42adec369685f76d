"""Objects in remote storage: read and listed by URL, whatever storage does, and what is said if it cannot be."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
from storage import Storage, fixture_plain_storage, use

from rayjepa.data.storage import faults
from rayjepa.data.storage.faults import NotThere, Passing, Refused, StorageError
from rayjepa.data.storage.remote import found, found_below, is_remote, read_bytes

__all__ = ["fixture_plain_storage"]
NAME = "films/a b/übung #1 %20.mp4"
CONTENT = os.urandom(300_000)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FIRST_PAUSE_S", 0.01)


@pytest.fixture(name="url", params=["s3", "http", "memory", "file"])
def fixture_url(request: pytest.FixtureRequest, plain_storage: Storage, tmp_path: Path) -> str:
    """The same object, by each kind of client."""
    match request.param:
        case "s3":
            plain_storage.objects[f"bucket/{NAME}"] = CONTENT
            return f"s3://bucket/{NAME}"
        case "http":
            plain_storage.objects[NAME] = CONTENT
            return f"{plain_storage.url}/{quote(NAME)}"
        case "memory":
            fsspec.filesystem("memory").pipe(f"/{NAME}", CONTENT)
            return f"memory://{NAME}"
        case _:
            (tmp_path / NAME).parent.mkdir(parents=True)
            (tmp_path / NAME).write_bytes(CONTENT)
            return f"file://{tmp_path / NAME}"


@pytest.fixture(name="films")
def fixture_films(plain_storage: Storage) -> Storage:
    plain_storage.objects["bucket/film.mp4"] = CONTENT
    return plain_storage


def test_an_object_is_read_whole_and_in_part_whatever_its_name(url: str) -> None:
    assert is_remote(url)
    assert found(url).nbytes == len(CONTENT)
    assert read_bytes(url) == CONTENT
    assert read_bytes(url, 1000, 5) == CONTENT[1000:1005]
    assert read_bytes(url, len(CONTENT) - 7) == CONTENT[-7:]


def test_an_object_that_is_not_there_is_said_to_be_so_at_once(url: str) -> None:
    started = time.monotonic()
    for look in (found, read_bytes):
        with pytest.raises(NotThere, match=r"no such object.*; it was deleted or renamed"):
            look(f"{url}.gone")
    assert time.monotonic() - started < 5


def test_paths_are_not_remote() -> None:
    assert not any(map(is_remote, ("/a/b.mp4", "a b.mp4", "C:/x.mp4", "dir/s3://x", "")))


def test_a_listing_holds_every_object_below_by_addresses_that_lead_back_to_it(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/ü 1.mp4", "a/#2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    url = f"file://{tmp_path}"
    listed = list(found_below(url))
    assert [f.uri for f in listed] == [f"{url}/{name}" for name in ("a/#2.mp4", "a/ü 1.mp4", "b.mp4")]
    assert [read_bytes(f.uri).decode() for f in listed] == ["a/#2.mp4", "a/ü 1.mp4", "b.mp4"]
    assert [f.nbytes for f in listed] == [len(read_bytes(f.uri)) for f in listed]
    before = listed[2].modified
    os.utime(tmp_path / "b.mp4", (1, 1))
    assert found(listed[2].uri).modified not in (None, before)


@pytest.mark.parametrize("fault", ["storm", "cut", "still"])
@pytest.mark.parametrize("client", ["s3", "http"])
def test_a_passing_fault_is_outlived_with_equal_bytes(films: Storage, fault: str, client: str) -> None:
    setattr(films, fault, 2)
    url = "s3://bucket/film.mp4" if client == "s3" else f"{films.url}/bucket/film.mp4"
    assert read_bytes(url, timeout_s=0.3) == CONTENT
    assert getattr(films, fault) == 0


def test_a_storm_that_outlasts_the_tries_is_told_with_their_number(films: Storage) -> None:
    films.storm = -1
    with pytest.raises(Passing, match=r"503.*storage is overloaded.*\(4 of 4 tries; data\.read_tries\)$"):
        read_bytes("s3://bucket/film.mp4", tries=4)
    assert len(films.requests) == 4  # the client makes no tries of its own


def test_pauses_double_and_differ_from_process_to_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(faults, "within", _storm)

    def pauses(pid: int) -> list[float]:
        slept: list[float] = []
        monkeypatch.setattr(faults.time, "sleep", slept.append)
        monkeypatch.setattr(faults.os, "getpid", lambda: pid)
        with pytest.raises(Passing):
            faults.retried(bool, url="s3://b/x", tries=7, timeout_s=1.0)
        return slept

    one, other = pauses(11), pauses(12)
    assert all(0.5 * base <= pause <= 1.5 * base for base, pause in zip((1, 2, 4, 8, 10, 10), one, strict=True))
    assert all(a != b for a, b in zip(one, other, strict=True))


def _storm(timeout_s: float, call: Callable[[], object], url: str) -> object:
    raise Passing(url)


def test_no_try_begins_that_could_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FIRST_PAUSE_S", 0.05)
    started = time.monotonic()
    release = threading.Event()
    with pytest.raises(Passing, match="no answer within"):
        faults.retried(lambda: release.wait(20), url="s3://b/x", tries=50, timeout_s=0.2, most_s=0.5)
    release.set()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("s3://nowhere/film.mp4", NotThere, "there is no bucket 'nowhere'; check its name and the endpoint (http://"),
        ("s3://bucket/gone.mp4", NotThere, "s3://bucket/gone.mp4: no such object; it was deleted or renamed"),
        ("xyz://a/b", StorageError, "Protocol not known: xyz; known are "),
        ("abfs://a/b", StorageError, "Install adlfs to access Azure Datalake Gen2 and Azure Blob Storage; install"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_the_remedy(
    films: Storage, url: str, kind: type[StorageError], words: str
) -> None:
    with pytest.raises(kind) as told:
        read_bytes(url)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_wrong_credentials_are_told_at_once_with_what_to_set(films: Storage) -> None:
    films.denied = True
    for look in (found, read_bytes, lambda url: list(found_below(url))):
        with pytest.raises(Refused, match=r"access denied \(.*\); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            look("s3://bucket/film.mp4")
    with pytest.raises(Refused, match="access denied"):
        read_bytes(f"{films.url}/bucket/film.mp4")


def test_where_nobody_listens_the_endpoint_is_named(films: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(Passing, match=r"check this node's network, and AWS_ENDPOINT_URL"):
        found("s3://bucket/film.mp4", tries=2, timeout_s=5.0)


def test_names_of_objects_are_not_taken_for_errors(films: Storage) -> None:
    films.objects["bucket/403/AccessDenied 404.mp4"] = CONTENT
    films.storm = 1
    assert read_bytes("s3://bucket/403/AccessDenied 404.mp4") == CONTENT

"""What goes wrong in remote storage, in one sentence with the remedy, and whether another try may mend it."""

import logging
import math
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 10.0
PASSING = (
    "NETWORK_CONNECTION|SLOW_DOWN|THROTTL|REQUEST_TIMEOUT|REQUEST_TIMED_OUT|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|"
    "TOO_?MANY_?REQUESTS|[Tt]oo many requests|BANDWIDTH_LIMIT|OPERATION_ABORTED|"
    r"\b(?:408|429|5\d\d)\b|curlCode: \d+|kUnavailable|kDeadlineExceeded|kResourceExhausted|kInternal|"
    "[Tt]imed? ?out|[Cc]onnection|[Rr]eset by peer|[Pp]ayload|[Dd]isconnected|[Nn]etwork|Could not resolve"
)
"""What clients say of an answer that may be another next time: AWS by name, Google by code, HTTP by number."""
DENIED = (
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|EXPIRED_TOKEN|INVALID_CLIENT_TOKEN|"
    r"UNRECOGNIZED_CLIENT|MISSING_AUTHENTICATION|AccessDenied|Forbidden|\b(?:401|403)\b|kPermissionDenied|"
    "kUnauthenticated|[Cc]redential|[Pp]ermission"
)
MISSING = r"NO_SUCH|RESOURCE_NOT_FOUND|NoSuchKey|NoSuchBucket|\b404\b|kNotFound|does not exist|[Nn]ot found"


class StorageError(RuntimeError):
    """One sentence: which address, what storage said, what to do."""


class NotThere(StorageError):
    """No such bucket, folder or object: another try finds none either."""


class Changed(StorageError):
    """Not the object that the manifest speaks of: it was written anew since."""


class Refused(StorageError):
    """The credentials are wrong, or allow too little."""


class Passing(StorageError):
    """Throttled, cut off, out of reach or too slow: another try may do better."""


def told(error: Exception, url: str) -> StorageError:
    """The error of a client as one of ours; its own words are kept, on one line."""
    if isinstance(error, StorageError):
        return error
    words = _words(error)
    known = words.replace(url.partition("://")[2], "")  # the name of an object may hold any word
    if isinstance(error, FileNotFoundError):
        return NotThere(f"{url}: no such object; it was deleted or renamed, or the address is wrong")
    if isinstance(error, PermissionError) or re.search(DENIED, known):
        return Refused(f"{url}: access denied ({words}); {_credentials(url)}")
    if re.search("NO_SUCH_BUCKET|NoSuchBucket", known):
        return no_bucket(url)
    if "PERMANENT_REDIRECT" in known or "Moved Permanently" in known or re.search(r"\b301\b", known):
        return StorageError(f"{url}: the bucket is in another region ({words}); set AWS_REGION to the bucket's")
    if isinstance(error, TimeoutError | ConnectionError | EOFError) or re.search(PASSING, known):
        return Passing(f"{url}: {words}; {_reach(known)}")
    if re.search(MISSING, known):
        return NotThere(f"{url}: no such object ({words}); it was deleted or renamed, or the address is wrong")
    return StorageError(f"{url}: {words}; check the address, and that this node may read it")


def _words(error: Exception) -> str:
    """What the client says, on one line, without what helps only its maker."""
    status = getattr(error, "status", None)
    words = f"HTTP {status}" if isinstance(status, int) else re.sub(r"\s+", " ", str(error)).strip()
    words = re.sub(r"^When [^:]*: |;? ?(?:Details:.*|\(Request ID:.*?\))| No response body\.$", "", words)
    return words.rstrip(":. ") or type(error).__name__


def no_bucket(url: str) -> NotThere:
    scheme, _, rest = url.partition("://")
    bucket = rest.split("/")[0]
    return NotThere(f"{url}: there is no bucket {bucket!r}; check its name and the endpoint ({_endpoint(scheme)})")


def retried(call: Callable[[], T], *, url: str, tries: int, timeout_s: float, most_s: float = math.inf) -> T:
    """What `call` returns, in at most `timeout_s` a try; a passing fault is tried again after a pause.

    There is no further try once all have taken `most_s`, and the last is cut short then. Pauses double up to 10 s,
    times 0.5 to 1.5, drawn from the process id: a thousand actors that were throttled together do not come back
    together.
    Raises:  StorageError, the last one; it says how many tries there were.
    """
    until = time.monotonic() + most_s
    for done in range(1, tries + 1):
        try:
            return within(min(timeout_s, max(0.0, until - time.monotonic())), call, url)
        except Passing as fault:
            pause_s = min(FIRST_PAUSE_S * 2 ** (done - 1), LONGEST_PAUSE_S) * (0.5 + _dice(os.getpid()).random())
            if done == tries or time.monotonic() + pause_s >= until:
                raise Passing(f"{fault} ({done} of {tries} tries; data.read_tries)") from fault
            logger.info("%s; try %d of %d in %.1f s", fault, done + 1, tries, pause_s)
            time.sleep(pause_s)
    raise AssertionError("at least one try")


def within(timeout_s: float, call: Callable[[], T], url: str) -> T:
    """What `call` returns, if it does in time; else it is left behind, in a thread that ends with the process.

    A thread of its own, since not every client keeps to its time-outs.
    """
    answer: queue.SimpleQueue[tuple[bool, T | Exception]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put((True, call()))
        except Exception as error:  # noqa: BLE001  raised again below, in the caller's thread
            answer.put((False, error))

    threading.Thread(target=ask, name=f"read {url[:80]}", daemon=True).start()
    try:
        good, result = answer.get(timeout=timeout_s)
    except queue.Empty:
        raise Passing(f"{url}: no answer within {timeout_s:g} s (data.read_timeout_s); {_reach('')}") from None
    if good:
        return result  # type: ignore[return-value]
    assert isinstance(result, Exception)
    if isinstance(result, AssertionError | AttributeError | NameError | TypeError):
        raise result  # a mistake of ours
    raise told(result, url) from result


@cache
def _dice(pid: int) -> random.Random:
    return random.Random(pid)


def _credentials(url: str) -> str:
    match url.partition("://")[0]:
        case "s3":
            return (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of this node that may list "
                "and read the bucket"
            )
        case "gs":
            return "set GOOGLE_APPLICATION_CREDENTIALS, or a service account of this node that may list and read it"
        case scheme:
            return f"give this process what {scheme}:// needs to be read"


def _endpoint(scheme: str) -> str:
    if scheme != "s3":
        return f"of {scheme}://"
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS; none is set"


def _reach(words: str) -> str:
    if re.search("resolve|connect|Connect|NETWORK", words):
        return "check this node's network, and AWS_ENDPOINT_URL where storage is not AWS"
    return "storage is overloaded or out of reach; fewer decode actors, or data.read_tries, may help"

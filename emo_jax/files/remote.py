"""Object stores (s3://, gs://), read through tensorstore; every request ends in bounded time.

tensorstore repeats a request for a few seconds; what fails for longer is left to `waiting`. The
variables AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION and AWS_DEFAULT_REGION mean what they
mean to AWS's tools; tensorstore takes the keys from the environment by itself, but not these.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorstore as ts

from emo_jax.errors import UsageError, has_secret, one_line
from emo_jax.files.waiting import AwayError, RefusedError, SpoiltError, is_stopped

BLOCK_BYTES = 8 << 20  # of a file that is read from end to end
_RETRIES = {"max_retries": 5, "initial_delay": "100ms", "max_delay": "2s"}  # about 3 s
_ANSWER_SECONDS = 30.0  # a request without an answer for this long has failed
_SILENCE_SECONDS = 10  # a connection without a byte for this long is dropped
_LOOK_SECONDS = 0.1  # between checks whether to stop
_RECHECK_SECONDS = 30.0

# tensorstore's status codes for bytes that exist and are wrong.
DAMAGE = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")


def is_remote(location: str) -> bool:
    """Whether a location is a URL of something other than a local file."""
    return "://" in location and not location.startswith("file://")


def refuse_secret(location: str) -> None:
    """Refuses a URL with a password, key or signature: names of inputs are kept and shown.

    Raises:
      UsageError: says so, without the secret.
    """
    if has_secret(location):
        raise UsageError(
            f"{location}: must not hold a password, key or signature; give it by the environment"
            " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for others FSSPEC_HTTP and the like,"
            " see SECURITY.md)"
        )


def endpoint() -> str:
    """Returns the address of another S3 server than AWS's; "" if none is set."""
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return found.rstrip("/")


def fsspec_options(scheme: str, **config: Any) -> dict[str, Any]:
    """Returns what fsspec must be told about a store of this kind.

    Args:
      config: settings of botocore's client, for S3.
    """
    # Kept listings would hide what was replaced or added since.
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme not in ("s3", "s3a"):
        return options
    options["config_kwargs"] = config
    # Part of the options, since fsspec keeps clients and would keep an old address; few servers
    # other than Amazon's have a name for each bucket.
    if endpoint():
        options["endpoint_url"] = endpoint()
        config["s3"] = {"addressing_style": "path"}
    region = os.environ.get("AWS_REGION")
    if region and not os.environ.get("AWS_DEFAULT_REGION"):
        options["client_kwargs"] = {"region_name": region}
    return options


def kvstore(url: str) -> Any:
    """Returns what tensorstore needs to open the folder `url`."""
    return kvstore_of_file(url.rstrip("/") + "/")


def kvstore_of_file(url: str) -> Any:
    """Returns what tensorstore needs to open the one file `url`.

    Raises:
      UsageError: see `refuse_secret`.
    """
    refuse_secret(url)
    scheme, _, rest = url.partition("://")
    if scheme not in ("gs", "s3"):
        return url
    bucket, _, path = rest.partition("/")
    spec = {"driver": "s3" if scheme == "s3" else "gcs", "bucket": bucket, "path": path}
    if scheme == "gs":
        return spec
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint():
        spec["endpoint"] = endpoint()
    if region:
        spec["aws_region"] = region
    return spec


def context(**resources: Any) -> ts.Context:
    """Returns a context with retries of bounded time, and other resources of it."""
    # Read once, when tensorstore first sends a request; there is no other way to set them.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_SILENCE_SECONDS))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", str(_SILENCE_SECONDS))
    resources |= {"s3_request_retries": _RETRIES, "gcs_request_retries": _RETRIES}
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # without errors about other places to find keys in
        resources["aws_credentials"] = {"type": "environment"}
    return ts.Context(resources)


def answer(future: Any, what: str) -> Any:
    """Returns what a request to an object store gives.

    Raises:
      AwayError: it failed, is late, or was told to stop: `waiting` may try again.
      SpoiltError: what was read is damaged.
      RefusedError: it is not allowed.
    """
    end = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            return future.result(timeout=_LOOK_SECONDS)
        except TimeoutError as error:
            if time.monotonic() < end and not is_stopped():
                continue
            future.cancel()
            raise AwayError(f"{what}: no answer") from error
        except (ValueError, OSError) as error:
            text = f"{what}: cannot be read ({one_line(error)})"
            if str(error).startswith(_REFUSED):
                raise RefusedError(
                    f"{text}; give this process keys that may read and list it"
                ) from error
            if str(error).startswith(DAMAGE):
                raise SpoiltError(text) from error
            raise AwayError(text) from error


def open_kvstore(url: str, spec: Any, context: ts.Context) -> Any:
    """Opens what `kvstore` or `kvstore_of_file` returns.

    Raises:
      AwayError, SpoiltError, RefusedError: see `answer`; the last also for what is no such URL.
    """
    try:
        opening = ts.KvStore.open(spec, context=context)
    except ValueError as error:
        raise RefusedError(
            f"{url}: cannot be opened ({one_line(error)}); give s3://BUCKET/PATH or gs://BUCKET/PATH"
        ) from error
    return answer(opening, url)


class Content(NamedTuple):
    """A file, and the mark by which a later version of it differs."""

    value: bytes
    generation: bytes


class RemoteFolder:
    """A folder of an object store; its methods try once, see `Patience.read`."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._context = context()
        self._opened: Any = None

    def _kv(self) -> Any:
        if self._opened is None:
            self._opened = open_kvstore(self.url, kvstore(self.url), self._context)
        return self._opened

    def read(self, name: str) -> Content | None:
        """Returns a file; None if it does not exist."""
        got = answer(self._kv().read(name), f"{self.url}/{name}")
        return Content(got.value, got.stamp.generation) if got.state == "value" else None

    def read_range(self, name: str, start: int, stop: int) -> bytes | None:
        """Returns bytes [start, stop) of a file; None if it does not exist.

        Raises:
          SpoiltError: it is shorter.
        """
        part = slice(start, stop)
        got = answer(self._kv().read(name, byte_range=part), f"{self.url}/{name}")
        return got.value if got.state == "value" else None

    def changed(self, name: str, generation: bytes) -> bool:
        """Whether a file has another generation now; costs a request, not a transfer.

        Raises:
          AwayError: it does not exist, or cannot be asked for now.
        """
        got = answer(self._kv().read(name, if_not_equal=generation), f"{self.url}/{name}")
        if got.state == "missing":
            raise AwayError(f"{self.url}/{name}: is not there any more")
        return got.state == "value"

    def sizes(self) -> dict[str, int | None]:
        """Returns the size of every file by its name; None where only fsspec could tell it."""
        try:
            listing = _listing(self.url)
        except ImportError:
            found = answer(self._kv().list(), self.url)
            return {name.decode(): None for name in found}
        return listing()


def _listing(url: str) -> Callable[[], dict[str, int | None]]:
    """Raises ImportError without fsspec, or its library for this kind of URL."""
    import fsspec

    seconds = {"connect_timeout": _SILENCE_SECONDS, "read_timeout": _SILENCE_SECONDS}
    scheme = url.partition("://")[0]
    options = fsspec_options(scheme, **seconds, retries={"max_attempts": 1})
    filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)

    def listing() -> dict[str, int | None]:
        try:
            found = filesystem.find(path, detail=True)
        except PermissionError as error:
            raise RefusedError(
                f"{url}: cannot be listed ({one_line(error)}); give this process keys that may"
                " read and list it"
            ) from error
        except Exception as error:  # each library has errors of its own
            raise AwayError(f"{url}: cannot be listed ({one_line(error)})") from error
        start = len(path.rstrip("/")) + 1
        return {name[start:]: info["size"] for name, info in found.items()}

    return listing


class RemoteFiles:
    """Notices when a folder of an object store is replaced while it is in use.

    Args:
      folder: the folder.
      name: the file that describes the others; it is asked for every half a minute.
      generation: of the version in use.
    """

    def __init__(self, folder: RemoteFolder, name: str, content: Content):
        self._folder, self._name, self._content = folder, name, content
        self._checked, self._lock = time.monotonic(), threading.Lock()

    def check(self, *names: str) -> None:
        """See `SteadyFiles`."""
        with self._lock:
            if time.monotonic() - self._checked < _RECHECK_SECONDS:
                return
            before, self._checked = self._checked, time.monotonic()
        try:
            changed = self._folder.changed(self._name, self._content.generation)
            if not changed:
                return
            now = self._folder.read(self._name)
        except AwayError:
            self._checked = before
            raise
        if now is None or now.value != self._content.value:
            self._checked = before
            raise SpoiltError(
                f"{self._folder.url}/{self._name}: was replaced or changed while it was in use"
            )
        self._content = now  # written again, the same

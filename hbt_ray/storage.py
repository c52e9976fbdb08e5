"""One filesystem layer for local folders and `s3://`: every access is patient with a storage that stumbles.

Credentials come from the environment only (AWS_ACCESS_KEY_ID and the rest of the AWS chain); endpoint and region from
the address (`s3://bucket/prefix?region=..&endpoint_override=..&scheme=..`), else from the environment
(AWS_ENDPOINT_URL, AWS_REGION). What fails for a passing reason is tried again with growing waits, each time with a
warning; what fails for good is a FileNotFoundError (nothing there) or a ResourceError (everything else).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from hbt_ray.credentials import refuse_credentials, without_credentials
from hbt_ray.errors import ConfigError, ResourceError

Result = TypeVar("Result")

log = logging.getLogger(__name__)

S3_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
OBJECT_STORES = ("s3", "gcs")  # a key needs no folder to be in
OWN_REQUESTS = 3  # attempts of one request below our own retries, which are the ones that are logged
LENT_REQUESTS = 10  # attempts of one request of those who are handed the filesystem and do not retry themselves
ATTEMPTS_OF_A_CHECK = 3  # a user waits for the answer
CONNECT_SECONDS = 10.0  # the SDK's own limits, 1 and 3 seconds, are those of a storage that is never busy
REQUEST_SECONDS = 30.0
BLOCK = 64 << 20  # bytes of a file in memory at once
FILES_AT_ONCE = 4

# What a second attempt cannot mend; everything else that S3 answers may pass.
PERMANENT = re.compile(
    r"AWS Error (ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID"
    r"|INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH|MISSING_AUTHENTICATION_TOKEN|UNRECOGNIZED_CLIENT|OPT_IN_REQUIRED"
    r"|VALIDATION) "
    r"|HTTP status (3\d\d|4(?!08|29)\d\d)"
    r"|Bucket '[^']*' not found"
)
PASSING = {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}  # network file systems


@dataclass(frozen=True)
class Retries:
    """How often an access is made in all, and the seconds between attempts: drawn from [0, limit], a doubling limit."""

    attempts: int = 8
    first_wait: float = 1.0
    longest_wait: float = 30.0


def absolute_address(address: str) -> str:
    """A local path from the root, which processes with another current folder understand too; others as they are."""
    return address if "://" in address else str(Path(address).expanduser().absolute())


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem that pyarrow knows; `uri` is a local path or `s3://bucket/prefix`.

    Every method raises ResourceError for what goes on failing and, where it reads, FileNotFoundError for what is
    not there. An address with credentials in it is a ConfigError from the start.
    """

    uri: str
    retries: Retries = Retries()

    def __post_init__(self) -> None:
        refuse_credentials(without_credentials(self.uri), self.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.uri, self.retries)  # each process makes its own connections

    @cached_property
    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        if self.uri.startswith("s3://"):
            options, path = self._s3
            return s3_filesystem(OWN_REQUESTS, **options), path
        if "://" in self.uri:
            try:
                return pafs.FileSystem.from_uri(self.uri)  # type: ignore[no-any-return]
            except pa.ArrowInvalid as error:
                raise ConfigError(self.uri, error, "a folder or s3://bucket/prefix", "Correct the address.") from None
        return pafs.LocalFileSystem(), str(Path(self.uri).expanduser().absolute())

    @cached_property
    def _s3(self) -> tuple[dict[str, str], str]:
        options, path = s3_address(self.uri)
        if "region" not in options:
            bucket = path.partition("/")[0]
            options["region"] = self._retried("", lambda: str(pafs.resolve_s3_region(bucket)))
        return options, path

    @property
    def _filesystem(self) -> pafs.FileSystem:
        return self._resolved[0]

    @cached_property
    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow filesystem of this folder, for others to use: it retries by itself, without a word."""
        return s3_filesystem(LENT_REQUESTS, **self._s3[0]) if self.uri.startswith("s3://") else self._filesystem

    def path(self, name: str = "") -> str:
        """Path of a file inside the folder, in the terms of `filesystem`."""
        root = self._resolved[1].rstrip("/")
        return f"{root}/{name}" if name else root

    def __truediv__(self, name: str) -> Folder:
        return replace(self, uri=self._address(name))

    def _address(self, name: str) -> str:
        root, question_mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{root.rstrip('/')}/{name}{question_mark}{options}" if name else self.uri

    def _retried(self, name: str, access: Callable[[], Result]) -> Result:
        """The result of an access to a file, made again while it fails for a passing reason."""
        where = self._address(name)
        attempt = Retrying(
            retry=retry_if_exception(is_passing),
            stop=stop_after_attempt(self.retries.attempts),
            wait=wait_random_exponential(self.retries.first_wait, self.retries.longest_wait),
            before_sleep=partial(_warn, where, self.retries.attempts),
            reraise=True,
        )
        try:
            return attempt(access)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _resource_error(where, error, attempt.statistics["attempt_number"]) from error

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name is there."""
        info = self._retried(name, lambda: self._filesystem.get_file_info(self.path(name)))
        return bool(info.type != pafs.FileType.NotFound)

    def entries(self) -> list[str]:
        """Names of files and folders directly inside, sorted; empty if the folder does not exist."""
        return sorted(info.base_name for info in self._listed())

    def folders(self) -> list[str]:
        """Names of the folders directly inside, sorted."""
        return sorted(info.base_name for info in self._listed() if info.type == pafs.FileType.Directory)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file at any depth, by its path relative to this folder; empty if the folder does not exist."""
        infos = self._listed(recursive=True)
        start = len(self.path()) + 1
        return {info.path[start:]: info.size for info in infos if info.type == pafs.FileType.File}

    def _listed(self, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path(), allow_not_found=True, recursive=recursive)
        return self._retried("", lambda: list(self._filesystem.get_file_info(selector)))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return self.read_with(name, lambda file: bytes(file.read()))

    def open_input(self, name: str) -> pa.NativeFile:
        """A file opened for random access; only the opening is retried, see `read_with`."""
        return self._retried(name, lambda: self._filesystem.open_input_file(self.path(name)))

    def read_with(self, name: str, reader: Callable[[pa.NativeFile], Result]) -> Result:
        """What a reader makes of a file opened for random access; opened and read again when either fails."""

        def access() -> Result:
            with self._filesystem.open_input_file(self.path(name)) as file:
                return reader(file)

        return self._retried(name, access)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, making parent folders."""

        def access() -> None:
            with self._opened_for_writing(name) as stream:
                stream.write(data)

        self._retried(name, access)

    def write_final(self, name: str, data: bytes) -> None:
        """Write a file that has its name once it is complete, as an object of S3 does by itself."""
        if self._filesystem.type_name in OBJECT_STORES:
            self.write(name, data)
            return
        self.write(f"{name}.partial", data)
        self._filesystem.move(self.path(f"{name}.partial"), self.path(name))

    def _opened_for_writing(self, name: str) -> pa.NativeFile:
        path = self.path(name)
        if self._filesystem.type_name not in OBJECT_STORES:
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        return self._filesystem.open_output_stream(path)

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""

        def access() -> None:
            with suppress(FileNotFoundError):
                self._filesystem.delete_file(self.path(name))

        self._retried(name, access)

    def upload(self, local: Path) -> None:
        """Copy all files of a local folder into this one, several at a time; files of other names stay."""
        if not local.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(local))
        names = [file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()]
        _several_at_once(lambda name: self._upload_file(local / name, name), names)

    def _upload_file(self, source: Path, name: str) -> None:
        def access() -> None:
            with source.open("rb") as data, self._opened_for_writing(name) as stream:
                while block := data.read(BLOCK):
                    stream.write(block)
                    stream.flush()  # S3 writes in the background, with all that is not yet sent in memory

        self._retried(name, access)

    def download(self, local: Path, names: Sequence[str] | None = None) -> None:
        """Copy files (all of them, if no names are given) into a local folder, several at a time.

        A file appears under its name once it is complete.
        """
        wanted = self.sizes() if names is None else names
        _several_at_once(lambda name: self._download_file(name, local / name), wanted)

    def _download_file(self, name: str, target: Path) -> None:
        partial = target.with_name(f"{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)

        def copy(file: pa.NativeFile) -> None:
            with partial.open("wb") as data:
                while block := file.read(BLOCK):
                    data.write(block)

        self.read_with(name, copy)
        partial.replace(target)

    def check_writable(self) -> None:
        """Write and remove a small file, with few retries. Raises ResourceError."""
        attempts = min(self.retries.attempts, ATTEMPTS_OF_A_CHECK)
        folder = replace(self, retries=replace(self.retries, attempts=attempts))
        name = f".{secrets.token_hex(4)}"
        try:
            folder.write(name, b"writable")
        except FileNotFoundError as error:  # no such drive, or a system folder that takes no folders
            raise _resource_error(self.uri, error, attempts) from error
        folder.remove(name)


class S3(pafs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's S3 filesystem that keeps its number of attempts when it is pickled (Ray hands it around).

    Args:
        requests: attempts of one request, by the AWS SDK with its own growing waits.
        options: of pyarrow.fs.S3FileSystem.
    """

    def __init__(self, requests: int, **options: str) -> None:
        super().__init__(
            **options,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=requests),
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            allow_delayed_open=True,  # a small file is one request
        )
        self._arguments = {"requests": requests, **options}

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled_s3, (self._arguments,)


@lru_cache(maxsize=16)
def s3_filesystem(requests: int, **options: str) -> S3:
    """The process's `S3` of these arguments, so that folders of one bucket share its connections."""
    return S3(requests, **options)


def _unpickled_s3(arguments: dict[str, Any]) -> S3:
    return s3_filesystem(**arguments)


def s3_address(uri: str) -> tuple[dict[str, str], str]:
    """Options of `S3` and the path (bucket/prefix) of an address, completed from the environment.

    `region` is missing where neither the address nor the environment knows it. Raises ConfigError.
    """
    refuse_credentials(without_credentials(uri), uri)
    parts = urlsplit(uri, allow_fragments=False)
    options = dict(parse_qsl(parts.query))
    unknown = sorted(set(options).difference(S3_OPTIONS))
    if unknown or not parts.netloc:
        received = f"option {unknown[0]!r}" if unknown else "no bucket"
        raise ConfigError(uri, received, f"s3://bucket/prefix, options {', '.join(S3_OPTIONS)}", "Correct the address.")
    if "endpoint_override" not in options:
        options = _environment_endpoint() | options
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if "endpoint_override" in options:
        region = region or "us-east-1"  # what servers other than AWS's go by
    if region:
        options.setdefault("region", region)
    return options, unquote(f"{parts.netloc}{parts.path}").rstrip("/")


def _environment_endpoint() -> dict[str, str]:
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return {}
    refuse_credentials("AWS_ENDPOINT_URL", url)
    scheme, separator, endpoint = url.rstrip("/").partition("://")
    if not separator or not endpoint:
        raise ConfigError("AWS_ENDPOINT_URL", url, "http://host:port or https://host", "Correct the variable.")
    return {"scheme": scheme, "endpoint_override": endpoint}


def is_passing(error: BaseException) -> bool:
    """Whether the same access may succeed later."""
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
        return False
    if error.errno is not None:
        return error.errno in PASSING
    return PERMANENT.search(str(error)) is None


def _warn(where: str, attempts: int, state: RetryCallState) -> None:
    log.warning(
        "%s: %s; trying again in %.1f s (attempt %d of %d)",
        where,
        state.outcome and state.outcome.exception(),
        state.upcoming_sleep,
        state.attempt_number + 1,
        attempts,
    )


def _resource_error(where: str, error: OSError, attempts: int) -> ResourceError:
    """What a user can do about a storage that refuses or does not answer."""
    text = error.strerror or str(error)
    if re.search("NO_SUCH_BUCKET|Bucket '[^']*' not found", text):
        return ResourceError(where, text, "a bucket that exists", "Create the bucket or correct the address.")
    if re.search("ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN|UNRECOGNIZED_CLIENT|HTTP status 40[13]", text):
        return ResourceError(
            where,
            text,
            "credentials that may read and write there",
            "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the rights of that key.",
        )
    if "NETWORK_CONNECTION" in text:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        return ResourceError(
            where,
            f"{text} (after {attempts} attempts)",
            f"an answer from {endpoint}",
            "Check AWS_ENDPOINT_URL and the network.",
        )
    if error.errno is not None:
        return ResourceError(where, text, "a storage that can be read and written", "Check its rights and free space.")
    return ResourceError(
        where,
        f"{text} (after {attempts} attempts)",
        "a storage that answers",
        "Look after the storage and start again.",
    )


def _several_at_once(copy: Callable[[str], None], names: Iterable[str]) -> None:
    """Copy files in threads; the first error is raised when those under way have ended."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for _ in pool.map(copy, names):
            pass


def write_whole(path: Path, text: str) -> None:
    """Write a local text file that is there only once it is complete."""
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def sha256(data: bytes) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()

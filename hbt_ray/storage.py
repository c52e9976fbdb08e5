"""One filesystem layer for local folders and `s3://` (credentials and endpoint come from the environment only)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from hbt_ray.errors import ConfigError


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem that pyarrow knows; `uri` is a local path or `s3://bucket/prefix`."""

    uri: str

    @cached_property
    def _resolved(self) -> tuple[pafs.FileSystem, str]:
        if "://" in self.uri:
            try:
                return pafs.FileSystem.from_uri(self.uri)  # type: ignore[no-any-return]
            except pa.ArrowInvalid as error:
                raise ConfigError(self.uri, error, "a folder or s3://bucket/prefix", "Correct the address.") from None
        return pafs.LocalFileSystem(), str(Path(self.uri).expanduser().absolute())

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow filesystem of this folder."""
        return self._resolved[0]

    def path(self, name: str = "") -> str:
        """Path of a file inside the folder, in the terms of `filesystem`."""
        root = self._resolved[1].rstrip("/")
        return f"{root}/{name}" if name else root

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of that name is there."""
        return bool(self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def entries(self) -> list[str]:
        """Names of files and folders directly inside, sorted; empty if the folder does not exist."""
        selector = pafs.FileSelector(self.path(), allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def folders(self) -> list[str]:
        """Names of the folders directly inside, sorted."""
        selector = pafs.FileSelector(self.path(), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises OSError."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file, making parent folders. Raises OSError."""
        parent = self.path(name).rpartition("/")[0]
        self.filesystem.create_dir(parent, recursive=True)
        with self.filesystem.open_output_stream(self.path(name)) as stream:
            stream.write(data)

    def remove(self, name: str) -> None:
        """Delete a file if it is there. Raises OSError."""
        if self.exists(name):
            self.filesystem.delete_file(self.path(name))


def sha256(data: bytes) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()

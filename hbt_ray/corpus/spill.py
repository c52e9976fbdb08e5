"""Local disk for what is too large for memory: temporary folders, and Arrow batches that are read in another order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from hbt_ray.errors import ResourceError

_CODEC = pa.Codec("zstd", compression_level=1)


class Spill:
    """Arrow batches in one file on local disk, compressed, each found again by the place where it begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._end = 0

    def put(self, batch: pa.RecordBatch) -> int:
        """Append a batch; its place."""
        data = batch.serialize()
        packed = _CODEC.compress(data, asbytes=True)
        place = self._end
        with local_disk(str(self._path)):
            self._file.seek(place)
            self._file.write(len(data).to_bytes(8, "little") + len(packed).to_bytes(8, "little"))
            self._file.write(packed)
        self._end += 16 + len(packed)
        return place

    def get(self, place: int, schema: pa.Schema) -> pa.RecordBatch:
        """The batch at a place."""
        with local_disk(str(self._path)):  # what is not yet written out is now
            self._file.seek(place)
        size, stored = (int.from_bytes(self._file.read(8), "little") for _ in range(2))
        return pa.ipc.read_record_batch(_CODEC.decompress(self._file.read(stored), size), schema)

    def table(self, places: Iterable[int], schema: pa.Schema) -> pa.Table:
        """The batches at some places, one after the other."""
        return pa.Table.from_batches([self.get(place, schema) for place in places], schema)

    def close(self) -> None:
        """Delete the file, if that is not done."""
        with suppress(OSError):  # what a full disk did not take is not wanted any more
            self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder on local disk, below TMPDIR, that ends with the context. Raises ResourceError if none can be made."""
    with local_disk("temporary folder"):  # the search for a disk with room is part of this call
        folder = TemporaryDirectory(prefix="hbt-ray-")
    with folder:
        yield Path(folder.name)


@contextmanager
def local_disk(path: str) -> Iterator[None]:
    """Turn a full or failing local disk into a ResourceError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "Free some space or set TMPDIR to a folder on another disk."
        raise ResourceError(path, reason, "local disk for temporary files", fix) from error

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from hbt_ray.corpus.pairs import ParallelPair
from hbt_ray.corpus.shards import MANIFEST, open_corpus, part_name, write_dataset
from hbt_ray.corpus.validate import validate
from hbt_ray.errors import ConfigError, CorpusError
from hbt_ray.storage import Folder

PAIRS = [
    ParallelPair(f"p{n}", f"s{n}", f"g{n}", {"en": f"question {n}", "de": f"Frage {n}"}, {"de": f"Antwort {n}"})
    for n in range(11)
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    boto3.client("s3").create_bucket(Bucket="corpora")
    return "corpora"


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder on disk, and one in a bucket."""
    if request.param == "local":
        return Folder(str(tmp_path / "corpus"))
    return Folder(f"s3://{request.getfixturevalue('bucket')}/{tmp_path.name}")


def write(folder: Folder) -> None:
    write_dataset(folder, "mt", PAIRS, ["en", "de"], {"source": "made up"}, rows_per_part=6, rows_per_group=4)


def test_files_come_back(folder: Folder) -> None:
    """Local or S3: what is written is read, listed, and gone after its removal."""
    assert (folder.exists(), folder.entries(), folder.folders()) == (False, [], [])
    folder.write("b/deep/file", b"\0one")
    folder.write("a", b"two")
    assert (folder / "b").read("deep/file") == b"\0one"
    assert (folder.entries(), folder.folders()) == (["a", "b"], ["b"])
    assert (folder.exists(), folder.exists("a"), folder.exists("b"), folder.exists("c")) == (True, True, True, False)
    folder.write("a", b"three")
    assert folder.read("a") == b"three"
    folder.remove("a")
    folder.remove("a")
    assert folder.entries() == ["b"]


def test_an_absent_file_is_an_os_error(folder: Folder) -> None:
    """Local or S3: reading what is not there raises FileNotFoundError, as with open()."""
    with pytest.raises(FileNotFoundError):
        folder.read("none")


def test_a_folder_travels_between_processes(folder: Folder) -> None:
    """A folder is pickled to other processes, before and after its first use."""
    fresh = pickle.loads(pickle.dumps(folder))
    folder.write("a", b"one")
    assert [copy.read("a") for copy in (fresh, pickle.loads(pickle.dumps(folder)))] == [b"one", b"one"]
    assert fresh == folder


def test_shards_live_anywhere(folder: Folder) -> None:
    """Local or S3: the same shard code writes, opens, validates and reads a dataset cell by cell."""
    write(folder)
    (dataset,) = open_corpus(folder)
    validate(dataset)
    groups = range(len(dataset.group_starts) - 1)
    cells = [dataset.read_group("de", group, ["query", "passage"]) for group in groups]
    assert [cell.num_rows for cell in cells] == [4, 2, 4, 1]
    assert sorted(text for cell in cells for text in cell["query"].to_pylist()) == sorted(p.query["de"] for p in PAIRS)
    with pytest.raises(CorpusError, match="no dataset 'x'"):
        open_corpus(folder, ["x"])


def test_shards_are_byte_for_byte_the_same_on_s3(bucket: str, tmp_path: Path) -> None:
    """A corpus in a bucket has the bytes of the corpus on disk, so the two can be copied into each other."""
    local, remote = Folder(str(tmp_path)), Folder(f"s3://{bucket}/copy")
    write(local)
    write(remote)
    (dataset,) = open_corpus(local)
    for name in [*dataset.manifest.files, MANIFEST]:
        assert local.read(f"mt/{name}") == remote.read(f"mt/{name}")


def test_an_incomplete_dataset_is_noticed(folder: Folder) -> None:
    """Local or S3: parts without manifest, and a part that is gone, are named."""
    write(folder)
    (dataset,) = open_corpus(folder)
    (folder / "mt").remove(part_name("de", 1))
    with pytest.raises(CorpusError, match="no such file") as info:
        dataset.read_group("de", 3, ["query"])
    assert info.value.where == f"{folder.uri}/mt/{part_name('de', 1)}"
    with pytest.raises(CorpusError, match=part_name("de", 1)):
        validate(dataset)
    (folder / "mt").remove(MANIFEST)
    with pytest.raises(CorpusError, match=r"no manifest\.json"):
        open_corpus(folder)


def test_a_corpus_that_is_not_there(folder: Folder) -> None:
    """Local or S3: an address without anything behind it is refused as such."""
    with pytest.raises(CorpusError, match="no such folder"):
        open_corpus(folder)


def test_an_address_of_no_known_kind() -> None:
    """A scheme that no filesystem answers to is a mistake of the user, reported with the address."""
    with pytest.raises(ConfigError, match="ftp://host/corpus"):
        open_corpus(Folder("ftp://host/corpus"))

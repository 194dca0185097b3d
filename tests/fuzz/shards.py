"""Mutated Parquet files, manifests and tars through planner and reader: every row that was planned, or an error."""

import gzip
import io
import random
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz.mutations import NUMBERS, scattered
from pyarrow import csv
from samples import jpeg

from pipeline.errors import InputError
from pipeline.stream import sources
from pipeline.stream.shards import Sample, Shard

ROWS = 24
WRITTEN = ({"compression": "none"}, {"compression": "zstd", "row_group_size": 10}, {"use_dictionary": False})
KINDS = (b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"g", b"\xff")
"""Of members of a tar: files, links, devices, folders, long names, sparse files, extended headers, and none."""
MOST = 10_000
"""Samples of a file of a few kilobytes: more means that its reader does not end."""


class Files(ABC):
    """Writes mutated files, lists, plans and reads them.

    Args:
        seed: of the mutations.
        originals: (name, content) of whole files of `ROWS` images.
    """

    def __init__(self, seed: int, originals: list[tuple[str, bytes]]) -> None:
        self._seed = seed
        self._originals = originals
        self._folder = tempfile.TemporaryDirectory(prefix="raylens-fuzz-")
        for row in range(ROWS):
            (Path(self._folder.name) / f"{row}.jpg").write_bytes(jpeg(row % 5))
        for name, content in originals:
            samples = [sample for _, found in self._read(name, content) for sample in found]
            assert [sample.error for sample in samples] == [None] * ROWS, name

    @abstractmethod
    def change(self, name: str, content: bytes, source: random.Random) -> bytes:
        """The mutation of a file."""

    def __call__(self, number: int) -> str:
        """Why a file, or the first of its rows that is, was rejected; empty where none was."""
        source = random.Random(f"{self._seed} {type(self).__name__} {number}")
        name, content = self._originals[number % len(self._originals)]
        try:
            read = list(self._read(name, self.change(name, content, source)))
        except InputError:
            return "InputError"
        for shard, samples in read:
            _check(shard, samples)
        codes = [sample.error.code for _, samples in read for sample in samples if sample.error is not None]
        return codes[0] if codes else ""

    def _read(self, name: str, content: bytes) -> Iterator[tuple[Shard, list[Sample]]]:
        path = Path(self._folder.name) / name
        path.write_bytes(content)
        found = sources.find((str(path),), {}, image=None)
        for shard in sources.plan(found, {}, sources.Fields(), state=self._folder.name):
            yield shard, list(islice(sources.read(shard, {}), MOST))


def _check(shard: Shard, samples: list[Sample]) -> None:
    """Rows in order without a gap, and none of those that were planned is missing without a word."""
    assert len(samples) < MOST, "the reader does not end"
    assert [sample.row for sample in samples] == [*range(shard.first, shard.first + len(samples))]
    whole = shard.rows is None or len(samples) == shard.rows
    last = samples[-1].error if samples else None
    assert whole or last is not None, f"{len(samples)} of {shard.rows} rows, and no word of the others"
    assert all(sample.error is not None or isinstance(sample.data, bytes) for sample in samples)


class Parquets(Files):
    """Parquet files: plain and dictionary pages, with and without compression, two row groups, bytes in a struct."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, [(f"{i}.parquet", content) for i, content in enumerate(_parquets())])

    def change(self, name: str, content: bytes, source: random.Random) -> bytes:
        """See `in_footer`."""
        return in_footer(content, source)


def in_footer(content: bytes, source: random.Random) -> bytes:
    """A mutated Parquet file; of its footer half of the time, which is small and says where everything is."""
    if source.random() < 0.5:
        return scattered(content, source)
    size = int.from_bytes(content[-8:-4], "little")
    footer = scattered(content[-8 - size : -8], source)
    return content[: -8 - size] + footer + len(footer).to_bytes(4, "little") + content[-4:]


def _parquets() -> Iterator[bytes]:
    images = [jpeg(row % 5) for row in range(ROWS)]
    identity = {"id": [f"n{row}" for row in range(ROWS)], "label": [row % 4 for row in range(ROWS)]}
    structs = [{"bytes": image, "path": f"{row}.jpg"} for row, image in enumerate(images)]
    for columns in ({**identity, "image": images}, {"image": structs}):
        for options in WRITTEN:
            buffer = io.BytesIO()
            pq.write_table(pa.table(columns), buffer, **options)
            yield buffer.getvalue()


class Manifests(Files):
    """CSV and Parquet manifests of images beside them."""

    def __init__(self, seed: int) -> None:
        named = pa.table({"path": [f"{row}.jpg" for row in range(ROWS)], "label": [row % 4 for row in range(ROWS)]})
        text, table = io.BytesIO(), io.BytesIO()
        csv.write_csv(named, text)
        pq.write_table(named, table)
        super().__init__(seed, [("a.csv", text.getvalue()), ("b.parquet", table.getvalue())])

    def change(self, name: str, content: bytes, source: random.Random) -> bytes:
        """As of any Parquet file, or of any bytes."""
        return in_footer(content, source) if name.endswith(".parquet") else scattered(content, source)


class Tars(Files):
    """WebDataset tars: plain, with names too long for a header in GNU's and in POSIX' way, and compressed."""

    def __init__(self, seed: int) -> None:
        plain = _tar()
        long = f"{'folder/' * 30}long"
        named = [_tar(long, tarfile.GNU_FORMAT), _tar(long, tarfile.PAX_FORMAT, {"mtime": "1.5", "comment": "x" * 99})]
        contents = [plain, *named, gzip.compress(plain, mtime=0)]
        super().__init__(seed, list(zip(("a.tar", "b.tar", "c.tar", "d.tar.gz"), contents, strict=True)))

    def change(self, name: str, content: bytes, source: random.Random) -> bytes:
        """Of a header with a sum that fits, or of what follows it, half of the time."""
        if name.endswith(".gz") or source.random() < 0.5:
            return scattered(content, source)
        found = bytearray(content)
        for _ in range(source.choice((1, 1, 2))):
            start = source.choice(_headers(content))
            header, after = slice(start, start + tarfile.BLOCKSIZE), slice(start + tarfile.BLOCKSIZE, start + 1024)
            found[header] = _header(bytes(found[header]), source) if source.random() < 0.7 else found[header]
            found[after] = _same_size(bytes(found[after]), source) if source.random() < 0.4 else found[after]
        return bytes(found)


def _tar(prefix: str = "", kind: int = tarfile.GNU_FORMAT, records: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, pax_headers=records) as tar:
        for row in range(ROWS):
            for extension, content in (("jpg", jpeg(row % 5)), ("json", b'{"label": 1}')):
                member = tarfile.TarInfo(f"{prefix}{row:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _headers(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [member.offset for member in tar]


def _same_size(block: bytes, source: random.Random) -> bytes:
    """A mutated block: a header, or the long name or the records that follow one."""
    return (scattered(block, source) + block)[: len(block)]


SIZE, SUM, KIND = slice(124, 136), slice(148, 156), slice(156, 157)


def _header(header: bytes, source: random.Random) -> bytes:
    """Another size, another kind of member, or mutated bytes; with the sum of the damage."""
    found = bytearray(header)
    match source.choice(("size", "kind", "bytes")):
        case "size":
            number = source.choice((*NUMBERS, 2**33, 2**62))
            octal = number < 8**11 and source.random() < 0.5
            found[SIZE] = b"%011o\0" % number if octal else b"\x80" + number.to_bytes(11)
        case "kind":
            found[KIND] = source.choice(
                (b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"S", b"x", b"g", b"\xff")
            )
        case _:
            found = bytearray(_same_size(header, source))
    found[SUM] = b" " * 8
    found[SUM] = b"%06o\0 " % sum(found)
    return bytes(found)

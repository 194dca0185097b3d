"""WebDataset tars: keys, labels, and every way in which a tar can be damaged."""

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import codes, tar_samples
from samples import write_tar, write_tars

from pipeline.stream.shards import Sample, Shard
from pipeline.stream.sources import webdataset

COUNT = 12


def noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, and hold no block of zeros."""
    return np.random.default_rng(seed).integers(1, 256, length, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples of an image and a label; images end on, before and after block boundaries."""
    lengths = [512, 1, 700, 1024, 1536, 513, 511, 300, 2048, 1025, 400, 900]
    samples = [(f"{i:03d}", {"jpg": noise(i, length), "cls": str(i).encode()}) for i, length in enumerate(lengths)]
    return write_tar(tmp_path_factory.mktemp("whole") / "a.tar", samples)


@pytest.fixture(scope="module")
def intact(whole: Path) -> list[Sample]:
    found = tar_samples(whole)
    assert len(found) == COUNT
    return found


def test_samples_of_a_tar(whole: Path, intact: list[Sample]) -> None:
    assert [sample.row for sample in intact] == [*range(COUNT)]
    assert [sample.sample_id for sample in intact] == [f"a.tar/{i:03d}" for i in range(COUNT)]
    assert [sample.uri for sample in intact] == [f"{whole}#{i:03d}" for i in range(COUNT)]
    assert [sample.label for sample in intact] == [str(i) for i in range(COUNT)]
    assert [len(sample.data) for sample in intact][:3] == [512, 1, 700]
    assert intact[3].data == noise(3, 1024)


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("a.jpg", "a", "jpg"),
        ("./train/n01/b.JPG", "train/n01/b", "jpg"),
        ("v1.2/c.png", "v1.2/c", "png"),
        ("d.left.jpg", "d", "left.jpg"),
        ("/abs/e.Seg.PNG", "/abs/e", "seg.png"),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_file_name(tmp_path: Path, name: str, key: str, field: str) -> None:
    assert webdataset._key(name) == (key, field)
    stem, _, extension = name.rpartition(".")
    (sample,) = tar_samples(write_tar(tmp_path / "t.tar", [(stem, {extension: b"image"})]))
    assert (sample.sample_id, sample.data, sample.error) == (f"t.tar/{key}", b"image", None)


@pytest.mark.parametrize(
    ("fields", "label_field", "label"),
    [
        ({"cls": b"3\n"}, None, "3"),
        ({"txt": b" tabby cat "}, None, "tabby cat"),
        ({"cls": b"3", "txt": b"a caption"}, None, "3"),
        ({"cls": b"  ", "label": b"5"}, None, "5"),
        ({"json": b'{"label": 7}'}, None, "7"),
        ({"json": b'{"cls": "dog", "other": 1}'}, None, "dog"),
        ({"cls": b"3", "json": b'{"fine": 40}'}, "fine", "40"),
        ({"cls": b"3", "txt": b"4"}, "txt", "4"),
        ({"json": b'{"label": 0}'}, None, "0"),
        ({"json": b'{"label": null}'}, None, None),
        ({"json": b'{"fine": 1}'}, "coarse", None),
        ({"json": b"not json"}, None, None),
        ({"json": b"[1, 2]"}, None, None),
        ({"json": b"[" * 100_000}, None, None),
        ({"cls": b"\xff"}, None, "�"),
        ({}, None, None),
        ({"left.cls": b"6"}, None, "6"),
    ],
)
def test_labels(tmp_path: Path, fields: dict[str, bytes], label_field: str | None, label: str | None) -> None:
    image = "left.jpg" if "left.cls" in fields else "jpg"
    path = write_tar(tmp_path / "t.tar", [("a", {image: b"image", **fields})])
    (sample,) = tar_samples(path, label_field)
    assert sample.label == label


def test_of_several_images_the_first_is_taken(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a", {"txt": b"1", "png": b"first", "jpg": b"second"})])
    (sample,) = tar_samples(path)
    assert (sample.data, sample.label) == (b"first", "1")


def test_a_sample_without_an_image_is_a_reject(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "t.tar", [("a", {"jpg": b"x"}), ("b", {"mp3": b"y", "cls": b"1"}), ("c", {"jpg": b"z"})]
    )
    found = tar_samples(path)
    assert codes(found) == [None, "no_image", None]
    assert "cls, mp3" in str(found[1].error)
    assert [sample.row for sample in found] == [0, 1, 2]


def test_a_member_that_comes_twice_is_two_samples(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "t.tar", [("a", {"jpg": b"first", "cls": b"1"}), ("a", {"jpg": b"second", "cls": b"2"})]
    )
    assert [(s.sample_id, s.data, s.label) for s in tar_samples(path)] == [
        ("t.tar/a", b"first", "1"),
        ("t.tar/a", b"second", "2"),
    ]


def test_what_is_no_sample_is_left_out(tmp_path: Path) -> None:
    """Folders, links, and the resource forks that macOS puts beside every file."""
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("x", tarfile.DIRTYPE), ("x/link.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
        for name in ("x/._a.jpg", "x/a.jpg", "x/.DS_Store"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    assert [sample.sample_id for sample in tar_samples(path)] == ["t.tar/x/a"]


def test_members_over_their_limit_are_rejected_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 100)
    monkeypatch.setattr(webdataset, "MAX_TEXT_BYTES", 10)
    path = write_tar(
        tmp_path / "t.tar",
        [
            ("a", {"jpg": b"x" * 100, "cls": b"1"}),
            ("b", {"jpg": b"x" * 101, "cls": b"2"}),
            ("c", {"jpg": b"x", "cls": b"1" * 11}),
        ],
    )
    found = tar_samples(path)
    assert codes(found) == [None, "too_large", None]
    assert "b.jpg has 101 bytes, over the limit of 100" in str(found[1].error)
    assert [sample.label for sample in found] == ["1", None, None]


def test_many_members_do_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "t.tar", [(f"{i}", {"jpg": b"x"}) for i in range(50)])
    held: list[int] = []
    original = webdataset._content

    def counted(tar: Any, member: Any, field: str) -> Any:
        held.append(len(tar.members))
        return original(tar, member, field)

    monkeypatch.setattr(webdataset, "_content", counted)
    assert len(tar_samples(path)) == 50
    assert max(held) == 0


def boundaries(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar] + [tar.offset]


def cut_positions(path: Path) -> list[int]:
    """Every header boundary and its neighbours, and fifty places between."""
    exact = boundaries(path)
    near = [place + step for place in exact for step in (-1, 0, 1, 511, 512)]
    anywhere = np.random.default_rng(0).integers(0, exact[-1] + tarfile.BLOCKSIZE, 50).tolist()
    return sorted({place for place in near + anywhere if 0 <= place < exact[-1] + tarfile.BLOCKSIZE})


def test_a_tar_cut_anywhere_gives_the_rows_before_and_one_reject(
    whole: Path, intact: list[Sample], tmp_path: Path
) -> None:
    content, starts = whole.read_bytes(), boundaries(whole)
    for cut in cut_positions(whole):
        (tmp_path / "a.tar").write_bytes(content[:cut])
        *good, last = tar_samples(tmp_path / "a.tar")
        assert [s._replace(uri="") for s in good] == [s._replace(uri="") for s in intact[: len(good)]], cut
        complete = sum(cut >= start + 512 for start in starts[2::2])  # the next sample's header proves it complete
        assert len(good) == complete, cut
        assert codes([last]) == ["truncated_shard" if good else "unreadable_shard"], cut
        assert (last.row, last.sample_id) == (len(good), f"a.tar#{len(good)}"), cut


def test_a_tar_is_complete_with_its_end_mark(whole: Path, intact: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(whole.read_bytes()[: boundaries(whole)[-1] + tarfile.BLOCKSIZE])
    assert len(tar_samples(tmp_path / "a.tar")) == len(intact)


def test_a_damaged_header_ends_the_shard_with_one_reject(whole: Path, tmp_path: Path) -> None:
    for member, start in enumerate(boundaries(whole)[:-1]):
        content = bytearray(whole.read_bytes())
        content[start : start + 512] = noise(start, 512)
        (tmp_path / "a.tar").write_bytes(content)
        *good, last = tar_samples(tmp_path / "a.tar")
        assert len(good) == max(0, member - 1) // 2
        assert codes([last]) == ["truncated_shard" if good else "unreadable_shard"]


def test_flipped_bytes_never_end_the_job(whole: Path, tmp_path: Path) -> None:
    """Whatever a header says: rows in order, and at most one error row, the last."""
    generator = np.random.default_rng(1)
    original, starts = whole.read_bytes(), boundaries(whole)[:-1]
    for _ in range(300):
        content = bytearray(original)
        start = int(generator.choice(starts))
        for place in generator.choice([*range(100, 108), *range(124, 160), 257, 345], 2, replace=False):
            content[start + place] = generator.integers(0, 256)
        header = content[start : start + 148] + b" " * 8 + content[start + 156 : start + 512]
        content[start + 148 : start + 156] = b"%06o\0 " % sum(header)  # a checksum that agrees with the damage
        (tmp_path / "a.tar").write_bytes(content)
        found = tar_samples(tmp_path / "a.tar")
        assert [sample.row for sample in found] == [*range(len(found))]
        assert "unreadable_shard" not in codes(found)[:-1]
        assert "truncated_shard" not in codes(found)[:-1]


@pytest.mark.parametrize("size", [-512, 2**41, 2**62, 2**63 - 1])
def test_a_size_that_no_file_has_ends_the_shard(whole: Path, tmp_path: Path, size: int) -> None:
    """Less than nothing would go round for ever; a seek to where it ends would look like storage that fails."""
    content, start = bytearray(whole.read_bytes()), boundaries(whole)[4]
    content[start + 124 : start + 136] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    header = content[start : start + 148] + b" " * 8 + content[start + 156 : start + 512]
    content[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(content)
    assert codes(tar_samples(tmp_path / "a.tar")) == [None, "truncated_shard"]


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
@pytest.mark.parametrize("member", [0, 4])
def test_a_name_of_gigabytes_is_not_read(whole: Path, tmp_path: Path, kind: bytes, member: int) -> None:
    """Found by `make fuzz`: tarfile would ask for all of it at once."""
    content, start = bytearray(whole.read_bytes()), boundaries(whole)[member]
    content[start + 124 : start + 136] = b"%011o\0" % (2**33 - 1)
    content[start + 156 : start + 157] = kind
    header = content[start : start + 148] + b" " * 8 + content[start + 156 : start + 512]
    content[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(content)
    *good, last = tar_samples(tmp_path / "a.tar")
    assert (len(good), last.error and last.error.code) == (
        (1, "truncated_shard") if member else (0, "unreadable_shard")
    )
    assert "8589934591 bytes" in str(last.error)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("tar.gz", gzip.compress), ("tgz", gzip.compress), ("tar.bz2", bz2.compress), ("tar.xz", lzma.compress)],
)
def test_compressed_tars(whole: Path, intact: list[Sample], tmp_path: Path, suffix: str, compress: Any) -> None:
    path = tmp_path / f"a.{suffix}"
    packed = compress(whole.read_bytes())
    path.write_bytes(packed)
    assert [(s.data, s.label) for s in tar_samples(path)] == [(s.data, s.label) for s in intact]
    generator = np.random.default_rng(2)
    for cut in generator.integers(0, len(packed) * 9 // 10, 20):  # the end is padding
        path.write_bytes(packed[:cut])
        *good, last = tar_samples(path)
        assert [s.data for s in good] == [s.data for s in intact[: len(good)]]
        assert codes([last]) == ["truncated_shard" if good else "unreadable_shard"]
    for place in generator.integers(0, len(packed), 40):
        damaged = bytearray(packed)
        damaged[place : place + 40] = noise(int(place), 40)
        path.write_bytes(damaged[: len(packed)])
        found = tar_samples(path)
        assert [sample.row for sample in found] == [*range(len(found))]
        assert set(codes(found)[:-1]) <= {None, "no_image"}


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"this is not a tar" * 100)
    (tmp_path / "b.tar").write_bytes(b"")
    for name in ("a.tar", "b.tar"):
        assert codes(tar_samples(tmp_path / name)) == ["unreadable_shard"]
    assert codes(tar_samples(tmp_path / "gone.tar")) == ["missing_object"]


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    assert tar_samples(write_tar(tmp_path / "a.tar", [])) == []


def test_the_size_of_a_sample_is_estimated(whole: Path, tmp_path: Path) -> None:
    tar = write_tars(tmp_path, shards=1, each=40)[0]
    shard = Shard(0, "a", str(tar), "webdataset", size=tar.stat().st_size)
    estimate = webdataset.bytes_per_sample(shard, {})
    assert estimate is not None
    assert 0.8 < tar.stat().st_size / estimate / 40 < 1.3
    (tmp_path / "b.tar").write_bytes(b"nothing")
    assert webdataset.bytes_per_sample(Shard(0, "b", str(tmp_path / "b.tar"), "webdataset"), {}) is None

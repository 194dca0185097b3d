"""Folder trees: which files, in which order, under which names."""

import os
from pathlib import Path

import fsspec
import pytest
from reading import codes, samples, shards

from pipeline.errors import InputError
from pipeline.stream.sources import folder

TREE = {
    "b.jpg": b"1",
    "a.JPEG": b"2",
    "cats/z.png": b"3",
    "cats/a.webp": b"4",
    "cats/deep/x.gif": b"5",
    "dogs [2020]/a.jpg": b"6",
    "dogs [2020]/#1 ü.jpg": b"7",
    "notes.txt": b"-",
    "noextension": b"-",
    ".hidden.jpg": b"-",
    "cats/._a.jpg": b"-",
    ".thumbnails/a.jpg": b"-",
    "dogs [2020]/.cache/deep/a.jpg": b"-",
}
IDS = ["a.JPEG", "b.jpg", "cats/a.webp", "cats/z.png", "cats/deep/x.gif", "dogs [2020]/#1 ü.jpg", "dogs [2020]/a.jpg"]
DATA = [TREE[name] for name in IDS]


def write(root: Path) -> Path:
    for name, content in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_images_of_a_tree_in_a_stable_order(tmp_path: Path) -> None:
    root = write(tmp_path / "images")
    found = samples(root, tmp_path / "state")
    assert [sample.sample_id for sample in found] == IDS
    assert [sample.data for sample in found] == DATA
    assert [sample.uri for sample in found] == [f"{root}/{name}" for name in IDS]
    assert [sample.row for sample in found] == [*range(len(IDS))]
    assert {sample.label for sample in found} == {None}
    assert samples(f"{root}/", tmp_path / "other") == found


def test_the_folder_is_the_label_where_the_job_says_so(tmp_path: Path) -> None:
    root = write(tmp_path / "images")
    found = samples(root, tmp_path / "state", label="folder")
    labels = {sample.sample_id: sample.label for sample in found}
    assert labels["cats/a.webp"] == "cats"
    assert labels["cats/deep/x.gif"] == "deep"
    assert labels["dogs [2020]/a.jpg"] == "dogs [2020]"


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    for name in ("one", "two"):
        names = sorted(TREE, reverse=name == "two")
        for file in names:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(TREE[file])
    one, two = (samples(tmp_path / name, tmp_path / f"state-{name}") for name in ("one", "two"))
    assert [sample.sample_id for sample in one] == [sample.sample_id for sample in two]


def test_an_empty_file_is_a_sample(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (sample,) = samples(tmp_path / "images", tmp_path / "state")
    assert (sample.sample_id, sample.data, sample.error) == ("a.jpg", b"", None)
    (alone,) = samples(tmp_path / "images" / "a.jpg", tmp_path / "state")
    assert (alone.sample_id, alone.data, alone.error) == ("a.jpg", b"", None)


def test_a_file_that_went_away_is_a_reject(tmp_path: Path) -> None:
    from pipeline.stream import sources

    root = write(tmp_path / "images")
    (shard,) = shards(root, tmp_path / "state")
    (root / "b.jpg").unlink()
    found = list(sources.read(shard, {}))
    assert codes(found) == [None, "missing_object", None, None, None, None, None]
    assert found[1].sample_id == "b.jpg"


def test_the_image_that_is_only_readable_by_another_user_is_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, whom no file refuses."""
    root = write(tmp_path / "images")
    original = fsspec.implementations.local.LocalFileSystem.open

    def refusing(self: object, path: str, *arguments: object, **options: object) -> object:
        if path.endswith("b.jpg"):
            raise PermissionError(13, "Permission denied", path)
        return original(self, path, *arguments, **options)

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "open", refusing)
    assert codes(samples(root, tmp_path / "state")).count("forbidden") == 1


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "images")
    original = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("cats"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"cats cannot be listed .Permission denied"):
        list(folder.entries(str(root), {}, label_field=None, attributes=()))


def test_a_file_system_that_is_neither_local_nor_s3() -> None:
    memory = fsspec.filesystem("memory")
    for name, content in TREE.items():
        memory.pipe_file(f"/tree/{name}", content)
    try:
        found = list(folder.entries("memory://tree", {}, label_field="folder", attributes=()))
        assert {entry.sample_id for entry in found} == set(IDS)
        assert {entry.uri for entry in found} == {f"memory:///tree/{name}" for name in IDS}
    finally:
        memory.rm("/tree", recursive=True)

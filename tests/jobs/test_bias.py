"""Bias discovery from images to its files: a planted shortcut is found, confirmed and named; nothing is done twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from samples import rows, state
from typer.testing import CliRunner

from pipeline.bias import planted, tinycnn
from pipeline.bias.planted_tars import write_tars
from pipeline.cli import app
from pipeline.errors import InputError, MethodError
from pipeline.jobs import again as again_module
from pipeline.jobs.bias import Discovery, bias
from pipeline.jobs.explain import explain
from schemas.bias import BiasSpec
from schemas.job import JobSpec

SIZE, IMAGES, SHARDS = 48, 480, 2
DATA = replace(
    planted.regime("partial", n_images=IMAGES, seed=9), classes=("circle", "hexagon"), size=SIZE, rho=0.75, decoy=False
)
FEW = {"slicers": [{"name": "domino", "parameters": {"components": 8}}, "random"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images whose cue is right three times in four, and a network that fell for it."""
    folder = tmp_path_factory.mktemp("bias")
    training = replace(DATA, seed=1, rho=0.95)
    pixels, labels = planted.stack(training, range(240))
    torch.set_num_threads(1)
    network = tinycnn.train(torch.from_numpy(pixels), torch.from_numpy(labels), num_classes=2, epochs=6, seed=0)
    tinycnn.save(network, folder / "network.safetensors")
    (folder / "labels.txt").write_text("circle\nhexagon\n")
    filesystem = fsspec.filesystem("file")
    write_tars(DATA, filesystem, str(folder / "images"), shards=SHARDS, images_per_shard=IMAGES // SHARDS)
    return folder


def fields(place: Path, output: Path, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "input": str(place / "images"),
        "output": str(output),
        "model": "module:pipeline.bias.tinycnn:tiny_cnn",
        "model_args": {"num_classes": 2},
        "weights": str(place / "network.safetensors"),
        "labels": str(place / "labels.txt"),
        "size": SIZE,
        "mean": tinycnn.MEAN,
        "std": tinycnn.STD,
        "runner": "local",
        "progress": "none",
    }
    return given | more


def spec(place: Path, output: Path, **more: Any) -> BiasSpec:
    return BiasSpec(**fields(place, output, **{"cues": ["cue"], **FEW, **more}))


@pytest.fixture(scope="module")
def found(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Discovery:
    return bias(spec(place, tmp_path_factory.mktemp("found")))


def test_the_planted_shortcut_is_found_confirmed_and_named(found: Discovery) -> None:
    """Circles with the hexagons' cue, and the other way round, are what fails."""
    assert found.confirmed
    cues = {"circle": planted.CUE_COLOURS, "hexagon": planted.CUE_COLOURS}
    for one in found.confirmed:
        name = found.names[one.slice.label or 0]
        assert name in cues
        top = one.enrichment[0]
        assert (top.attribute, top.enriched) == ("cue", True)
        assert top.odds_ratio.low > 1
        wrong = [found.images.attributes["cue"][row] for row in one.wrong]
        assert wrong.count(top.value) / len(wrong) > 0.8
        assert top.value in one.described
    assert sum(one.slice.harm.value for one in found.confirmed if one.slice.harm) > 0.2


def test_the_cue_is_followed_and_preferred(found: Discovery) -> None:
    assert found.cues is not None
    [cue] = found.cues.measures
    assert (cue.cue, cue.classes) == ("cue", {"0": 0, "1": 1})
    assert cue.bias is not None
    assert cue.bias.model.shortcut > cue.bias.model.core
    assert found.cues.preference is not None
    assert found.cues.preference.cues[0].cue == "cue"


def test_what_a_new_last_layer_would_give(found: Discovery) -> None:
    rows_ = {(one.recipe, one.groups) for one in found.mitigation}
    assert {("network", "none"), ("none", "none"), ("retrained", "slices"), ("groupdro", "oracle")} < rows_
    network = found.mitigation[0]
    assert network.mean_accuracy.of == len(found.main.rows[1])
    assert network.worst_accuracy.value is not None
    assert network.worst_accuracy.value < 0.5


def test_random_slices_confirm_nothing(found: Discovery) -> None:
    [chance] = [trial for trial in found.trials if trial.slicer == "random"]
    assert chance.verdict.confirmed == ()


def test_every_space_was_tried_and_every_image_is_in_one_half(found: Discovery) -> None:
    tried = [(trial.slicer, trial.space) for trial in found.trials]
    assert tried == [("domino", space) for space in ("image", "evidence", "rest", "random")] + [("random", "image")]
    first, second = found.main.rows
    assert sorted([*first, *second]) == list(range(IMAGES))
    assert 0.4 < len(first) / IMAGES < 0.6


def test_neighbours_are_right_and_of_the_class(found: Discovery) -> None:
    images = found.images
    for one in found.confirmed:
        for wrong, near in zip(one.wrong, one.neighbours, strict=False):
            assert images.labels[near] == images.labels[wrong] == images.predictions[near]
            assert images.predictions[wrong] != images.labels[wrong]


def test_the_files_say_the_same(found: Discovery) -> None:
    output = Path(found.spec.output)
    written = state(output, "bias.json")
    assert written["confirmed"] == len(found.confirmed)
    assert [one["name"] for one in written["findings"]] == [one.name for one in found.findings]
    slices = pq.read_table(output / "tables" / "slices.parquet").to_pylist()
    assert sum(one["status"] == "confirmed" for one in slices if one["slicer"] == "domino" and one["space"] == "image")
    images = pq.read_table(output / "tables" / "images.parquet").to_pylist()
    assert sorted(one["sample_id"] for one in images) == sorted(found.images.sample_ids)
    confirmed = [one for one in images if one["confirmed"] and one["half"] == "held_out"]
    assert len(confirmed) == sum(len(one.members) for one in found.confirmed)
    assert "<html" in (output / "report.html").read_text()
    assert len(rows(output / "explained")) == IMAGES


def test_a_second_run_embeds_nothing_and_says_the_same(
    found: Discovery, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(again_module, "run", never)
    again = bias(spec(place, Path(found.spec.output), progress="json"))
    assert again.to_json()["findings"] == found.to_json()["findings"]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert lines[-1]["event"] == "done"
    assert len({line["run"] for line in lines}) == 1


@pytest.fixture(scope="module")
def explained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("explained")
    explain(JobSpec(**fields(place, output, embedding=True, attributes=["cue"])))
    return output


def test_what_was_explained_is_found_again_from_the_command(
    explained: Path, found: Discovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command alone, with the fields of the job taken from the run."""
    (tmp_path / "bias.yaml").write_text(
        json.dumps(
            {
                "explanations": str(explained),
                "output": str(tmp_path / "out"),
                **FEW,
                "runner": "local",
                "progress": "none",
            }
        )
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["bias", "--config", "bias.yaml"], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(rows(tmp_path / "out" / "embedded")) == IMAGES
    written = state(tmp_path / "out", "bias.json")
    assert [one["slice"] for one in written["findings"]] == [one["slice"] for one in found.to_json()["findings"]]


def test_embeddings_that_were_computed_elsewhere(explained: Path, place: Path, tmp_path: Path) -> None:
    given = rows(explained)
    known = given[:-7]
    table = pa.table(
        {
            "sample_id": [one["sample_id"] for one in reversed(known)],
            "vector": pa.array([one["embedding"] for one in reversed(known)], pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, tmp_path / "vectors.parquet")
    settings = {"file": str(tmp_path / "vectors.parquet"), "column": "vector"}
    asked = spec(place, tmp_path / "out", explanations=str(explained), embeddings=settings)
    found = bias(asked)
    assert len(found.images) == IMAGES - 7
    assert any("7 of 480 images have no embedding" in one for one in found.statements)
    by_id = {one["sample_id"]: one["embedding"] for one in known}
    for name, vector in zip(found.images.sample_ids, found.images.embeddings["image"], strict=True):
        np.testing.assert_allclose(vector, by_id[name], rtol=1e-6)
    wrong = asked.model_copy(update={"embeddings": asked.embeddings.model_copy(update={"column": "nothing"})})
    with pytest.raises(InputError, match=r"vectors\.parquet"):
        bias(wrong)
    pq.write_table(table[:20], tmp_path / "vectors.parquet")
    with pytest.raises(MethodError, match="20 images have an embedding of their image, in halves of"):
        bias(asked)


def test_words_in_the_space_of_the_images(explained: Path, place: Path, tmp_path: Path) -> None:
    """As CLIP would have them: a word for each value of the cue, where its images are."""
    given = rows(explained)
    vectors, cues = np.array([one["embedding"] for one in given]), np.array([one["cue"] for one in given])
    words = {cue: vectors[cues == cue].mean(axis=0) - vectors.mean(axis=0) for cue in np.unique(cues).tolist()}
    pq.write_table(pa.table({"text": list(words), "embedding": list(words.values())}), tmp_path / "words.parquet")
    settings = {"spaces": "image", "words": str(tmp_path / "words.parquet")}
    found = bias(spec(place, tmp_path / "out", explanations=str(explained), embeddings=settings))
    assert found.confirmed
    for one in found.confirmed:
        assert one.words[0].text == one.enrichment[0].value
        assert one.words[0].score.low > 0
    assert "Words that its wrong images are more like" in (tmp_path / "out" / "report.html").read_text()
    narrow = pa.table({"text": ["a"], "embedding": [[1.0, 2.0]]})
    pq.write_table(narrow, tmp_path / "words.parquet")
    with pytest.raises(InputError, match="words have 2 numbers and those of the images 64"):
        bias(spec(place, tmp_path / "out", explanations=str(explained), embeddings=settings))


def test_a_part_of_the_images_is_said(explained: Path, place: Path, tmp_path: Path) -> None:
    asked = spec(place, tmp_path, explanations=str(explained), images=200, embeddings={"spaces": "image"})
    found = bias(asked)
    assert len(found.images) == 200
    assert any("200 of the 480 explained images" in one for one in found.statements)


def test_what_cannot_be_looked_for_is_told(place: Path, explained: Path, tmp_path: Path) -> None:
    given = {"explanations": str(explained), "embeddings": {"spaces": "image"}}
    with pytest.raises(MethodError, match="no slicer is named 'nothing'"):
        bias(spec(place, tmp_path, **given, slicers=["nothing"]))
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_tested_nothing_is_embedded(
    explained: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten images of a class in a half are too few for any slice; the report says so, and what to bring."""

    def never(*_args: object) -> None:
        raise AssertionError("embedded")

    monkeypatch.setattr(again_module, "run", never)
    found = bias(spec(place, tmp_path, explanations=str(explained), images=20, progress="json"))
    assert (found.main.verdict.slices, found.findings, found.mitigation) == ((), (), ())
    assert [measure.cue for measure in found.cues.measures] == ["cue"]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    [told] = [line["why"] for line in lines if line["event"] == "no slice can be tested"]
    assert "Bring more images of each class, more than 30. Only 20 of " in told
    assert told.endswith(" explained images are looked at: raise `images` first.")
    assert told in (tmp_path / "report.html").read_text()
    assert state(tmp_path, "bias.json")["tested"] == 0
    assert pq.read_table(tmp_path / "tables" / "images.parquet").num_rows == 20
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "bias.json", "tables"}


def test_an_input_is_predicted_before_it_is_embedded(place: Path, tmp_path: Path) -> None:
    """By a method of one pass, where the job's own takes many."""
    few = spec(place, tmp_path, limit=20, method="rise", method_args={"masks": 4})
    found = bias(few)
    assert found.main.verdict.slices == ()
    assert {row["method"] for row in rows(tmp_path / "predictions")} == {"cam"}
    assert not (tmp_path / "explained").exists()
    [told] = [one for one in found.statements if "Bring more images of each class" in one]
    assert "raise `images`" not in told  # all there are were looked at


def test_other_images_are_embedded_anew(explained: Path, place: Path, tmp_path: Path) -> None:
    given = {"explanations": str(explained), "embeddings": {"spaces": "image"}}
    first, second = (bias(spec(place, tmp_path, **given, images=count)) for count in (200, 220))
    assert (len(first.images), len(second.images)) == (200, 220)


def test_without_labels_there_is_nothing_to_ask(place: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(4):
        planted_image = planted.render(DATA, index).image
        (photos / f"{index}.png").write_bytes(_png(planted_image))
    with pytest.raises(InputError, match="--label-field"):
        bias(spec(place, tmp_path / "out", input=str(photos), cues=[]))


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image
    from samples import encoded

    return encoded(Image.fromarray(pixels), "PNG")

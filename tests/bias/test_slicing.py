"""Slicers against slow references, on planted slices, and what all of them promise."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_evidence import planted, softmax
from reference import slicing as reference

from pipeline.bias.slicing.amplification import PENALTIES, amplify, within_class_variance
from pipeline.bias.slicing.domino import REGULARISATION, Domino, seats
from pipeline.bias.slicing.facts import Facts
from pipeline.bias.slicing.mixture import Categorical, Gaussian, fit
from pipeline.bias.slicing.slicer import Evidence, Slices, excess_errors
from pipeline.bias.slicing.slicers import SLICERS, create
from pipeline.bias.slicing.spray import Spray
from pipeline.errors import MethodError

SMALL = {"domino": {"components": 8}, "facts": {"components": 3}, "random": {"slices": 5}}
"""Parameters for a few hundred rows."""


def found(name: str, evidence: Evidence, **parameters: object) -> Slices:
    return create(name, **(SMALL.get(name, {}) | parameters)).fit(evidence)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return planted()[0]


@pytest.fixture(scope="module")
def each(evidence: Evidence) -> dict[str, Slices]:
    return {name: found(name, evidence) for name in SLICERS}


@pytest.mark.parametrize("name", SLICERS)
def test_memberships_are_shares_of_ranked_slices(name: str, each: dict[str, Slices], evidence: Evidence) -> None:
    slices = each[name]
    r = slices.memberships(evidence)
    assert r.shape == (len(evidence), len(slices))
    assert r.dtype == np.float32
    assert len(slices) <= SLICERS[name]().slices
    assert (r >= 0).all()
    assert (r.sum(axis=1) <= 1 + 1e-5).all()
    assert (np.diff(slices.scores) <= 0).all()
    assert f"{len(evidence)} images" in slices.statement
    assert SLICERS[name].source


@pytest.mark.parametrize("name", [name for name in SLICERS if name != "random"])
def test_the_planted_slice_is_found_on_other_data_too(name: str, each: dict[str, Slices]) -> None:
    """First, but for DOMINO: its ranking puts scattered errors, which are purely wrong, beside those of a slice."""
    other, member = planted(seed=1)
    inside = each[name].memberships(other)[:, : 4 if name == "domino" else 1] > 0.5
    hits = inside[member].sum(axis=0)
    best = hits.argmax()
    assert hits[best] > 0.4 * member.sum()
    assert hits[best] > 0.9 * inside[:, best].sum()


def test_random_slices_are_of_equal_size_and_know_nothing() -> None:
    evidence, member = planted(4000)
    r = found("random", evidence).memberships(evidence)
    assert (r.sum(axis=1) == 1).all()
    assert np.abs(r.mean(axis=0) - 0.2).max() < 0.04
    assert np.abs(r[member].mean(axis=0) - 0.2).max() < 0.08


@pytest.mark.parametrize("name", SLICERS)
def test_permuted_rows_are_permuted_memberships(name: str, each: dict[str, Slices], evidence: Evidence) -> None:
    order = np.random.default_rng(3).permutation(len(evidence))
    again = found(name, evidence.take(order)).memberships(evidence.take(order))
    np.testing.assert_allclose(again, each[name].memberships(evidence)[order], atol=1e-5)


@pytest.mark.parametrize("name", SLICERS)
def test_memberships_do_not_know_what_was_predicted(name: str, each: dict[str, Slices], evidence: Evidence) -> None:
    flipped = dataclasses.replace(evidence, probabilities=np.ascontiguousarray(evidence.probabilities[:, ::-1]))
    assert not (flipped.correct == evidence.correct).any()
    assert np.array_equal(each[name].memberships(flipped), each[name].memberships(evidence))


@pytest.mark.parametrize("name", SLICERS)
def test_a_row_does_not_depend_on_its_neighbours(name: str, each: dict[str, Slices], evidence: Evidence) -> None:
    some = np.arange(0, len(evidence), 7)
    part = each[name].memberships(evidence.take(some))
    np.testing.assert_allclose(part, each[name].memberships(evidence)[some], atol=1e-6)


@pytest.mark.parametrize("name", SLICERS)
def test_equal_seeds_find_equal_slices(name: str, each: dict[str, Slices], evidence: Evidence) -> None:
    assert np.array_equal(found(name, evidence).memberships(evidence), each[name].memberships(evidence))


@pytest.mark.parametrize("name", ["domino", "kmeans", "random", "facts"])
def test_the_seed_changes_what_is_drawn(name: str) -> None:
    generator = np.random.default_rng(0)
    p = softmax(generator.normal(size=(300, 3)))
    noise = Evidence(generator.normal(size=(300, 4)).astype(np.float32), generator.integers(3, size=300), p)
    one, two = (found(name, noise, seed=seed).memberships(noise) for seed in (0, 1))
    assert one.shape != two.shape or np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("name", SLICERS)
def test_fewer_slices_are_the_first_ones(name: str, each: dict[str, Slices], evidence: Evidence) -> None:
    first = found(name, evidence, slices=2)
    assert len(first) == 2
    if name != "random":
        np.testing.assert_array_equal(first.memberships(evidence), each[name].memberships(evidence)[:, :2])


@pytest.mark.parametrize("name", SLICERS)
def test_one_class_all_right_is_sliced_without_harm(name: str) -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(60, 3)).astype(np.float32)
    p = np.full((60, 2), [0.9, 0.1], np.float32)
    maps = generator.normal(size=(60, 4, 4)).astype(np.float32)
    right = Evidence(embeddings, np.zeros(60, np.int64), p, relevance=maps, amplified=p)
    slices = found(name, right)
    assert (np.abs(slices.scores) <= 0.1 + 1e-6).all()
    r = slices.memberships(right)
    assert r.shape == (60, len(slices))
    assert np.isfinite(r).all()


@pytest.mark.parametrize("name", SLICERS)
def test_constant_dimensions_and_equal_rows_are_harmless(name: str, evidence: Evidence) -> None:
    width = evidence.embeddings.shape[1]
    flat = np.hstack([evidence.embeddings, np.full((len(evidence), 2), 100.0, np.float32)])
    slices = found(name, dataclasses.replace(evidence, embeddings=flat))
    assert np.isfinite(slices.memberships(dataclasses.replace(evidence, embeddings=flat))).all()
    equal = dataclasses.replace(evidence, embeddings=np.ones((len(evidence), width), np.float32))
    assert np.isfinite(found(name, equal).memberships(equal)).all()


@pytest.mark.parametrize("name", [name for name in SLICERS if name not in ("random", "spray")])
def test_embeddings_of_another_width_are_refused(name: str, each: dict[str, Slices], evidence: Evidence) -> None:
    narrow = dataclasses.replace(evidence, embeddings=evidence.embeddings[:, :-1])
    with pytest.raises(MethodError, match="must have 6 columns, found 5"):
        each[name].memberships(narrow)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": np.full((4, 2), np.nan, np.float32)}, "embeddings of 4 rows are not finite, first of row .0"),
        ({"embeddings": np.zeros((4, 2))}, "must be float32 with 2 dimensions and 4 rows, found float64"),
        ({"embeddings": np.zeros((3, 2), np.float32)}, r"4 rows, found float32 \(3, 2\)"),
        ({"labels": np.array([0, 1, 2, 0])}, r"in \[0, 2\), found others"),
        ({"labels": np.array([0, 1, 1, 0], np.int32)}, "found int32"),
        ({"labels": np.zeros(0, np.int64)}, "no rows"),
        ({"probabilities": np.ones((4, 2), np.float32)}, "sum to 1 .* 4 rows"),
        ({"relevance": np.zeros((4, 3), np.float32)}, "relevance must be float32 with 3 dimensions"),
        ({"amplified": np.full((4, 4), 0.25, np.float32)}, "amplified must have 2 columns, found 4"),
    ],
)
def test_unusable_evidence_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    right = {
        "embeddings": np.zeros((4, 2), np.float32),
        "labels": np.array([0, 1, 1, 0]),
        "probabilities": np.full((4, 2), 0.5, np.float32),
    }
    assert len(Evidence(**right)) == 4
    with pytest.raises(MethodError, match=message):
        Evidence(**(right | change))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("dominos", {}, "no slicer is named 'dominos'; there are: domino, facts, spray, kmeans, random"),
        ("kmeans", {"k": 3}, "slicer kmeans has no parameter k; it has: .*clusters"),
        ("domino", {"noise": 0.0}, "noise must be above 0"),
        ("domino", {"components": 0}, "components must be 1 or more, found 0"),
        ("facts", {"regularisation": 0.0}, "covariance of probabilities is singular"),
        ("spray", {"clusters": 1}, "clusters must be 2 or more, found 1"),
        ("random", {"slices": 0}, "slices must be 1 or more, found 0"),
        ("random", {"seed": -1}, "seed must not be negative"),
    ],
)
def test_wrong_names_and_parameters_are_refused(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        create(name, **parameters)


def test_missing_evidence_is_said(evidence: Evidence) -> None:
    bare = dataclasses.replace(evidence, relevance=None, amplified=None)
    with pytest.raises(MethodError, match="bring evidence with `relevance`"):
        Spray().fit(bare)
    with pytest.raises(MethodError, match="500 components need as many rows, found 400"):
        Domino(components=500).fit(evidence)
    with pytest.raises(MethodError, match="2 classes or more"):
        Facts().fit(bare.take(np.flatnonzero(evidence.labels == 0)))
    with pytest.raises(MethodError, match="bring these too"):
        Facts(components=2).fit(evidence).memberships(bare)


# --- mixtures against loops -------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.sampled_from([0.0, 1.0, 7.5]), gamma_hat=st.sampled_from([0.0, 1.0, 10.0]))
def test_the_mixture_is_that_of_the_loops(seed: int, gamma: float, gamma_hat: float) -> None:
    generator = np.random.default_rng(seed)
    rows, components, classes = 25, 4, 3
    z = generator.normal(size=(rows, 3)).astype(np.float32)
    labels, p = generator.integers(classes, size=rows), softmax(generator.normal(size=(rows, classes)))
    r = generator.dirichlet(np.ones(components), size=rows)
    factors = Gaussian(1.0, REGULARISATION), Categorical(gamma, classes), Categorical(gamma_hat, classes)
    columns = z, labels, p
    ours = fit(factors, columns, lambda part: r[part], iterations=4, tolerance=0.0)
    wide = z.astype(float), np.eye(classes)[labels], p.astype(float)
    model, bounds = reference.domino(r, *wide, (gamma, gamma_hat), REGULARISATION, 4)
    np.testing.assert_allclose(ours.bounds, bounds, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ours.mass, model["n"], rtol=1e-7)
    np.testing.assert_allclose(ours.densities[0].mean, model["mean"], atol=1e-7)
    np.testing.assert_allclose(ours.densities[0].variance, model["variance"], rtol=1e-6)
    np.testing.assert_allclose(ours.densities[1].probability, model["p"], atol=1e-8)
    np.testing.assert_allclose(ours.densities[2].probability, model["p_hat"], atol=1e-8)
    expected, _ = reference.expect(model, *wide, (gamma, gamma_hat))
    np.testing.assert_allclose(ours.responsibilities(columns, np.arange(components)), expected, atol=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, evidence: Evidence) -> None:
    whole = found("domino", evidence)
    for module in ("mixture", "slicer", "projection"):
        monkeypatch.setattr(f"pipeline.bias.slicing.{module}.CHUNK", 37)
    parts = found("domino", evidence)
    np.testing.assert_allclose(parts.memberships(evidence), whole.memberships(evidence), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_likelihood_never_falls_for_hard_predictions(seed: int) -> None:
    evidence, _ = planted(seed=seed)
    hard = np.eye(2, dtype=np.float32)[evidence.predictions]
    slices = Domino(tolerance=0.0, iterations=60).fit(dataclasses.replace(evidence, probabilities=hard))
    bounds = np.array(slices.mixture.bounds)
    assert len(bounds) == 60
    assert (np.diff(bounds) > -1e-9).all()
    assert bounds[-1] > bounds[0] + 0.1


def test_copies_of_a_cell_part_however_many_rows_there_are() -> None:
    evidence, _ = planted(20_000, dimensions=3)
    mixture = Domino().fit(evidence).mixture
    assert len(np.unique(mixture.densities[0].mean[mixture.mass > 50].round(2), axis=0)) > 8


def test_domino_ranks_by_the_largest_gap_between_prediction_and_label(evidence: Evidence) -> None:
    slices = Domino(components=8).fit(evidence)
    gaps = np.abs(slices.probability(2) - slices.probability(1)).max(axis=1)
    np.testing.assert_allclose(slices.scores, gaps)
    assert (slices.probability(1)[:2].argmax(axis=1) != slices.probability(2)[:2].argmax(axis=1)).all()


@pytest.mark.parametrize(("classes", "components"), [(1, 1), (2, 1), (2, 3), (2, 4), (2, 25), (3, 5), (5, 25), (9, 4)])
def test_every_cell_and_every_component_has_a_seat(classes: int, components: int) -> None:
    generator = np.random.default_rng(0)
    rows = 50 * classes
    evidence = Evidence(
        generator.normal(size=(rows, 2)).astype(np.float32),
        np.arange(rows) % classes,
        softmax(generator.normal(size=(rows, classes))),
    )
    owners, parts = seats(evidence, components)
    assert parts == min(classes**2, components)
    assert sorted(np.unique(owners)) == list(range(parts))
    if 1 < components < classes**2:
        assert not set(np.diag(owners)) & set(owners[~np.eye(classes, dtype=bool)])
    r = Domino(components=components).start(evidence.embeddings, evidence)(slice(0, rows))
    np.testing.assert_allclose(r.sum(axis=1), 1)
    if classes**2 == components:
        y, y_hat = evidence.labels[3], evidence.probabilities[3]
        np.testing.assert_allclose(r[3, owners[y]], y_hat / y_hat.sum(), atol=2e-3 * components)


def test_every_parameter_of_domino_and_facts_changes_something() -> None:
    evidence, _ = planted(300, seed=4)
    changes = {
        Domino(components=8): {"label_weight": 5.0, "prediction_weight": 5.0, "noise": 0.5, "tolerance": 1.0},
        Facts(components=3): {"prediction_weight": 0.0, "regularisation": 1.0, "tolerance": 1e3},
    }
    for slicer, settings_of in changes.items():
        before = slicer.fit(evidence).memberships(evidence)
        for name, value in (settings_of | {"dimensions": 2, "iterations": 1}).items():
            after = dataclasses.replace(slicer, **{name: value}).fit(evidence).memberships(evidence)
            assert before.shape != after.shape or np.abs(before - after).max() > 1e-6, name


# --- FACTS ------------------------------------------------------------------------------------------------------------


def test_the_mixture_of_a_class_is_that_of_the_loops() -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(30, 3)).astype(np.float32)
    p = softmax(2 * generator.normal(size=(30, 3)))
    r = generator.dirichlet(np.ones(3), size=30)
    factors = Gaussian(1.0, REGULARISATION), Gaussian(25.0, 1e-3)
    ours = fit(factors, (z, p), lambda part: r[part], iterations=3, tolerance=0.0)
    expected = reference.cosi(z.astype(float), p.astype(float), r, 25.0, 1e-3, 3)
    np.testing.assert_allclose(ours.responsibilities((z, p), np.arange(3)), expected, atol=1e-5)


def test_a_large_penalty_leans_on_the_easy_cue() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=800)
    cue = np.where(generator.random(800) < 0.8, labels, 1 - labels)
    embeddings = generator.normal(scale=0.2, size=(800, 16)).astype(np.float32)
    embeddings += np.column_stack([labels, *[cue] * 15])
    evidence = Evidence(embeddings, labels, np.full((800, 2), 0.5, np.float32))
    network = amplify(evidence)
    assert network.penalty == max(PENALTIES, key=lambda penalty: network.variances[penalty])
    leaning = network(embeddings)
    of_label = leaning[np.arange(800), labels]
    unpenalised = amplify(evidence, (1e-6,))(embeddings)[np.arange(800), labels]
    gap, usual = (p[cue == labels].mean() - p[cue != labels].mean() for p in (of_label, unpenalised))
    assert gap > 0.3 > 3 * usual
    loops = np.mean([leaning[labels == k, k].astype(float).var() for k in (0, 1)])
    assert within_class_variance(leaning, evidence) == pytest.approx(loops, rel=1e-4)
    assert amplify(evidence, (10.0,)).penalty == 10.0


def test_absent_classes_have_no_amplified_probability() -> None:
    evidence, _ = planted()
    three = np.hstack([evidence.probabilities, np.zeros((len(evidence), 1), np.float32)])
    leaning = amplify(dataclasses.replace(evidence, probabilities=three, amplified=None))(evidence.embeddings)
    assert leaning.shape == (len(evidence), 3)
    assert (leaning[:, 2] == 0).all()


def test_facts_without_an_amplified_network_makes_its_own() -> None:
    evidence = dataclasses.replace(planted()[0], amplified=None)
    order = np.random.default_rng(3).permutation(len(evidence))
    slices, again = (found("facts", one) for one in (evidence, evidence.take(order)))
    assert f"weight penalty of {slices.amplified.penalty:g}" in slices.statement
    r = slices.memberships(evidence)
    np.testing.assert_allclose(again.memberships(evidence), r, atol=1e-3)
    assert np.array_equal(slices.memberships(planted()[0]), r)


def test_excess_errors_are_those_beyond_the_class() -> None:
    correct = np.array([True, True, False, False, True])
    r = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]], np.float32)
    np.testing.assert_allclose(excess_errors(r, correct), [3 * (0.6 - 1 / 3), 2 * (0.6 - 1)], rtol=1e-6)

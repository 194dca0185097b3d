"""What a new last layer would give: recipes of `pipeline.bias.mitigation` with groups that bias discovery knows."""

from collections.abc import Sequence

import numpy as np

from pipeline.bias.gap import Ints
from pipeline.bias.gathered import Gathered
from pipeline.bias.mitigation import NONE, Frozen, Outcome, compared, outcome, pseudo_groups, random_groups
from pipeline.bias.trial import Trial

NETWORK = "network"
"""The network as it is, in the place of a recipe."""
SEEDS = (0, 1, 2)


def remedies(
    images: Gathered, trial: Trial, cues: Sequence[str], *, seeds: Sequence[int] = SEEDS
) -> tuple[Outcome, ...]:
    """Trains last layers on the discovery half and judges them on the held-out half.

    Groups are the confirmed slices, random ones of the same sizes and, where cues are given, `oracle`: label and cues.
    Accuracy is counted by the oracle's groups, or by the slices', which favours what was trained with them.

    Args:
        images: with the judged network's features of the whole image.
        trial: its slices.
        cues: attributes that might be shortcuts.
        seeds: of the training.

    Returns:
        The network as it is, the plain layer, and each recipe with each kind of groups; none without a confirmed slice.
    """
    if not trial.verdict.confirmed:
        return ()
    first, second = trial.rows
    features = images.embeddings["image"]
    train, test = Frozen(features[first], images.labels[first]), Frozen(features[second], images.labels[second])
    slices = pseudo_groups(trial.verdict, trial.discovery)
    groups = {"slices": slices, "random": random_groups(slices, train.labels, seeds[0])}
    test_groups = pseudo_groups(trial.verdict, trial.held_out)
    if cues:
        oracle = _by_cues(images, cues)
        groups, test_groups = {**groups, "oracle": oracle[first]}, oracle[second]
    as_it_is = outcome(NETWORK, NONE, 0, images.predictions[second], test, test_groups)
    return (as_it_is, *compared(train, groups, test, test_groups, seeds=seeds))


def _by_cues(images: Gathered, cues: Sequence[str]) -> Ints:
    """(N,) a number for each combination of label and cues."""
    columns = [
        images.labels,
        *(np.unique([str(v) for v in images.attributes[c]], return_inverse=True)[1] for c in cues),
    ]
    return np.asarray(np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1), dtype=np.int64)

"""Amplified correlations (FACTS, Yenamandra et al. 2023, section 3.2): a last layer that leans on what is easy."""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline.attribution.perturbation import chunks, require
from pipeline.bias.slicing.slicer import CHUNK, Evidence, Floats

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""λ of mean cross entropy + λ/2 ‖W‖², on features of unit variance."""
ITERATIONS = 200


@dataclass(frozen=True, eq=False)
class Amplified:
    """A linear classifier of embeddings, retrained with a large weight penalty.

    Attributes:
        penalty: λ.
        variances: by λ, mean over classes of the variance of the true class' probability within the class.
        scaler: of embeddings.
        head: classifier of scaled embeddings.
        classes: K, of which the head may have seen some only.
    """

    penalty: float
    variances: dict[float, float]
    scaler: StandardScaler
    head: LogisticRegression
    classes: int

    def __call__(self, embeddings: Floats) -> Floats:
        """(N, D) embeddings to (N, K) float32 probabilities; 0 for classes that were not in the data."""
        p = np.zeros((len(embeddings), self.classes), np.float32)
        for part in chunks(len(embeddings), CHUNK):
            p[part, self.head.classes_] = self.head.predict_proba(self.scaler.transform(embeddings[part]))
        return p


def amplify(evidence: Evidence, penalties: tuple[float, ...] = PENALTIES) -> Amplified:
    """Retrains the last layer on frozen features, once for each penalty, and keeps the most divided one.

    A penalty that is right splits a class: rows that follow the easy cue get a high probability of their class, rows
    against it a low one. Too small a penalty learns both, too large a one neither.

    Args:
        evidence: embeddings, which must be features that the classes can be read from, and labels of 2 classes or more.
        penalties: λ to try.

    Returns:
        The classifier whose probability of the true class varies most within the classes.

    Raises:
        MethodError: there is one class only.
    """
    present = np.unique(evidence.labels)
    require(len(present) > 1, "facts needs 2 classes or more, or probabilities of an amplified network: one was found")
    scaler = StandardScaler().fit(evidence.embeddings)
    features = scaler.transform(evidence.embeddings)
    heads, variances = {}, {}
    for penalty in penalties:
        head = LogisticRegression(C=1 / (penalty * len(features)), max_iter=ITERATIONS).fit(features, evidence.labels)
        heads[penalty], variances[penalty] = head, within_class_variance(head.predict_proba(features), evidence)
    best = max(variances, key=lambda penalty: variances[penalty])
    return Amplified(best, variances, scaler, heads[best], evidence.classes)


def within_class_variance(probabilities: Floats, evidence: Evidence) -> float:
    """Mean over the classes present of the variance of their probability among their rows.

    Args:
        probabilities: (N, classes present) in the order of the classes.
        evidence: labels.

    Returns:
        0 to 0.25.
    """
    members = enumerate(rows for _, rows in evidence.by_class())
    return float(np.mean([probabilities[rows, column].var() for column, rows in members]))

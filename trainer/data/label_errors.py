"""Labels that look wrong, judged by what a network sees in the images.

Confident learning, after Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", JAIR 70: an image is suspect when a model that never saw it gives another class at least the
probability that class's own images get on average.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .checks import Finding, shown_images
from .photo import Photo

MAX_IMAGES = 4000
"""Judged at most, a random sample of every class: a few seconds on two cores with 1,280 features."""
MAX_FEATURES = 128
"""Principal components kept. Five fits on more take minutes and, on a frozen backbone's features, find no more."""
REGULARISATION = 0.01
"""scikit-learn's C. Of 0.01 to 1, the fewest false alarms on 2,320 images of eight classes with 5 % of the labels
flipped, at the same number found: the weaker fit believes wrong labels less."""
FOLDS = 5
TOO_MANY = 0.25
"""Share of suspects above which the classes overlap in the features, and single labels are not the matter."""


def suspicious_labels(
    features: npt.NDArray[np.float32],
    truth: npt.NDArray[np.intp],
    photos: Sequence[Photo],
    labels: Sequence[str],
    *,
    seed: int,
) -> Finding | None:
    """Find images whose features speak for another class than their label.

    Args:
        features: (n, f) float32, a network's pooled features.
        truth: (n,) int, index of the class each image is labelled with.
        photos: (n) the images. Those of one group are judged by a model that saw none of the group.
        labels: the class names.
        seed: of the sample, where there are more than `MAX_IMAGES`.

    Returns:
        The finding, the least believable labels first; None where nothing is suspect or a class has too few
        images to tell.
    """
    chosen = _sample(truth, np.random.default_rng(seed))
    given = truth[chosen]
    counts = np.bincount(given)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    if folds < 2 or (counts > 0).sum() < 2:
        return None
    groups = np.unique([photos[i].group or photos[i].sha256 or photos[i].path for i in chosen], return_inverse=True)[1]
    scores = _scores_of_unseen(features[chosen], given, groups, folds)
    suspects, meant = confident_errors(scores, given)
    if not len(suspects):
        return None
    share = len(suspects) / len(chosen)
    where = f"{len(suspects)} of {len(photos)} labels" + (
        f" ({len(chosen)} were looked at)" if len(chosen) < len(photos) else ""
    )
    first = photos[chosen[suspects[0]]]
    message = (
        f"{where} look wrong by what the network sees, first {shown_images([first.path])}, labelled {first.label!r} "
        f"and more like {labels[meant[0]]!r}; look at them and correct those that are"
    )
    if share > TOO_MANY:
        message = (
            f"{where} look like another class to the network: so many mean that the classes are hard to tell apart "
            "on these images, or were mixed up; look at the first ones"
        )
    return Finding.about("label", message, [(photos[chosen[i]].path,) for i in suspects])


def confident_errors(
    scores: npt.NDArray[np.float64], given: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Off the diagonal of the confident joint.

    Args:
        scores: (n, classes), probabilities from models that did not see the image.
        given: (n,) int, the labels.

    Returns:
        Places of the suspects, the lowest probability of the given label first; and the class of each instead.
    """
    classes = scores.shape[1]
    # A class's threshold: the mean probability its own images give it. Classes without images are out of reach.
    thresholds = np.array([scores[given == c, c].mean() if (given == c).any() else np.inf for c in range(classes)])
    confident = np.where(scores >= thresholds, scores, -1.0)
    meant = confident.argmax(1)
    own = scores[np.arange(len(given)), given]
    # The other class must also be likelier than the given one, which thresholds alone do not promise.
    suspect = (confident.max(1) > own) & (meant != given)
    places = np.flatnonzero(suspect)
    places = places[np.argsort(own[places], kind="stable")]
    return places, meant[places]


def _sample(truth: npt.NDArray[np.intp], random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Places of at most `MAX_IMAGES`, the same share of each class and never fewer than there are folds."""
    share = min(1.0, MAX_IMAGES / len(truth))
    chosen = []
    for label in np.unique(truth):
        places = np.flatnonzero(truth == label)
        keep = min(len(places), max(FOLDS, int(len(places) * share)))
        chosen.append(random.permutation(places)[:keep])
    return np.sort(np.concatenate(chosen))


def _scores_of_unseen(
    features: npt.NDArray[np.float32], given: npt.NDArray[np.intp], groups: npt.NDArray[np.intp], folds: int
) -> npt.NDArray[np.float64]:
    """(n, classes) probabilities, each row from a model fitted without that image and its group."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    scores = np.zeros((len(features), int(given.max()) + 1))
    # One thread: on matrices this small several wait for one another more than they work.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Once for all folds: neither step knows the labels.
        reduced = PCA(min(MAX_FEATURES, *features.shape), svd_solver="randomized", random_state=0).fit_transform(
            StandardScaler().fit_transform(features)
        )
        # An ending before the last digit is good enough; classes whose groups are few may miss a fold.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The least populated class")
        for fitted, unseen in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(reduced, given, groups):
            if len(np.unique(given[fitted])) < 2:
                continue
            model = LogisticRegression(C=REGULARISATION, max_iter=200).fit(reduced[fitted], given[fitted])
            scores[np.ix_(unseen, model.classes_)] = model.predict_proba(reduced[unseen])
    return scores

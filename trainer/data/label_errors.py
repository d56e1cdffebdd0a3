"""Finds labels that look wrong, using the features of a network.

The method is confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", JAIR 70): a label is suspicious if a model that was not trained on the image gives another class at
least the average probability of the images labelled with that class.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .checks import Finding, shown_images
from .photo import Photo

MAX_IMAGES = 4000
"""Maximum number of images to check, a random sample of every class; takes a few seconds on two cores with 1,280
features."""
MAX_FEATURES = 128
"""Maximum number of principal components. With more, five fits take minutes, and on the features of a frozen backbone
they find no more errors."""
REGULARISATION = 0.01
"""scikit-learn's C. Of the values 0.01 to 1, this one gave the fewest false alarms on 2,320 images of eight classes
with 5 % of the labels flipped, and found as many errors: a weaker fit is less influenced by wrong labels."""
FOLDS = 5
TOO_MANY = 0.25
"""Share of suspicious labels above which the cause is overlapping classes rather than single wrong labels."""


def suspicious_labels(
    features: npt.NDArray[np.float32],
    truth: npt.NDArray[np.intp],
    photos: Sequence[Photo],
    labels: Sequence[str],
    *,
    seed: int,
) -> Finding | None:
    """Find images whose features indicate a different class from their label.

    Args:
        features: (n, f) float32, a network's pooled features.
        truth: (n,) int, index of the class that each image is labelled with.
        photos: the n images. Those of one group are checked with a model that was trained on none of them.
        labels: class names.
        seed: random seed of the sample if there are more than `MAX_IMAGES`.

    Returns:
        The finding, with the most suspicious labels first; None if no label is suspicious or a class has too few
        images.
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
        f" ({len(chosen)} were checked)" if len(chosen) < len(photos) else ""
    )
    first = photos[chosen[suspects[0]]]
    message = (
        f"{where} look wrong to the network, first {shown_images([first.path])}, labelled {first.label!r} "
        f"but more similar to {labels[meant[0]]!r}; check them and correct those that are wrong"
    )
    if share > TOO_MANY:
        message = (
            f"{where} look like another class to the network. With so many, the classes are probably hard to tell "
            "apart on these images, or were mixed up; check the first ones"
        )
    return Finding.about("label", message, [(photos[chosen[i]].path,) for i in suspects])


def confident_errors(
    scores: npt.NDArray[np.float64], given: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the off-diagonal entries of the confident joint.

    Args:
        scores: (n, classes), probabilities from models that were not trained on the image.
        given: (n,) int, the labels.

    Returns:
        Indices of the suspicious labels, those with the lowest probability first, and the more likely class of each.
    """
    classes = scores.shape[1]
    # Threshold of a class: the mean probability of the class for its own images; infinite without images.
    thresholds = np.array([scores[given == c, c].mean() if (given == c).any() else np.inf for c in range(classes)])
    confident = np.where(scores >= thresholds, scores, -1.0)
    meant = confident.argmax(1)
    own = scores[np.arange(len(given)), given]
    # The other class must also be likelier than the given one, which the thresholds do not guarantee.
    suspect = (confident.max(1) > own) & (meant != given)
    places = np.flatnonzero(suspect)
    places = places[np.argsort(own[places], kind="stable")]
    return places, meant[places]


def _sample(truth: npt.NDArray[np.intp], random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return indices of about `MAX_IMAGES` images, the same share of each class, but at least one per fold."""
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
    """Return (n, classes) probabilities, each row from a model that was fitted without that image and its group."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    scores = np.zeros((len(features), int(given.max()) + 1))
    # One thread, because on such small matrices several threads mostly wait for one another.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Once for all folds, because neither step uses the labels.
        reduced = PCA(min(MAX_FEATURES, *features.shape), svd_solver="randomized", random_state=0).fit_transform(
            StandardScaler().fit_transform(features)
        )
        # Full convergence is not needed, and classes with few groups may be missing in a fold.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The least populated class")
        for fitted, unseen in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(reduced, given, groups):
            if len(np.unique(given[fitted])) < 2:
                continue
            model = LogisticRegression(C=REGULARISATION, max_iter=200).fit(reduced[fitted], given[fitted])
            scores[np.ix_(unseen, model.classes_)] = model.predict_proba(reduced[unseen])
    return scores

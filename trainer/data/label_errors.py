"""Finds labels that are probably wrong, using the features that a network computes from the images.

The method is confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in
Dataset Labels", JAIR 70). A model that was not trained on the image gives a probability for each class. The label of
the image is suspicious if another class is more probable than the label, and at least as probable as it is on average
for the images that are labelled with that class.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .checks import Finding, shown_images
from .photo import Photo

MAX_IMAGES = 4000
"""Maximum number of images to check. If there are more, a random sample of every class is checked. The check takes a
few seconds on two cores with 1,280 features per image."""
MAX_FEATURES = 128
"""Maximum number of principal components to which the features are reduced. With more components, the five fits take
minutes, and they find no more wrong labels if the features come from a frozen backbone."""
REGULARISATION = 0.01
"""Parameter ``C`` of scikit-learn's logistic regression.

Values from 0.01 to 1 were compared on 2,320 images of eight classes with 5 % wrong labels. This value gave the fewest
false alarms, and found as many wrong labels as the other values. A more strongly regularised model is less influenced
by wrong labels."""
FOLDS = 5
TOO_MANY = 0.25
"""Maximum share of suspicious labels that is explained by single wrong labels. If the share is greater, the classes are
probably hard to tell apart, or were mixed up."""


def suspicious_labels(
    features: npt.NDArray[np.float32],
    truth: npt.NDArray[np.intp],
    photos: Sequence[Photo],
    labels: Sequence[str],
    *,
    seed: int,
) -> Finding | None:
    """Find images whose features indicate another class than the label.

    Args:
        features: (n, f) float32, pooled features that a network computed for each image.
        truth: (n,) int, index of the class that each image is labelled with.
        photos: the n images. Each image is checked with a model that was trained on no image of the same group.
        labels: class names.
        seed: random seed of the sample, which is drawn if there are more than `MAX_IMAGES` images.

    Returns:
        The finding, with the most suspicious labels first; None if no label is suspicious, there is only one class, or
        a class has too few images.
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
    """Find suspicious labels, which are the off-diagonal entries of the confident joint.

    Args:
        scores: (n, classes), class probabilities of each image, from a model that was not trained on the image.
        given: (n,) int, label of each image as a class index.

    Returns:
        Indices of the images with suspicious labels, in ascending order of the probability of the label; and the more
        probable class of each of these images.
    """
    classes = scores.shape[1]
    # The threshold of a class is its mean probability for the images labelled with it; infinite if there are none.
    thresholds = np.array([scores[given == c, c].mean() if (given == c).any() else np.inf for c in range(classes)])
    confident = np.where(scores >= thresholds, scores, -1.0)
    meant = confident.argmax(1)
    own = scores[np.arange(len(given)), given]
    # The other class must also be more probable than the label, which the thresholds do not guarantee.
    suspect = (confident.max(1) > own) & (meant != given)
    places = np.flatnonzero(suspect)
    places = places[np.argsort(own[places], kind="stable")]
    return places, meant[places]


def _sample(truth: npt.NDArray[np.intp], random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Draw a random sample of about `MAX_IMAGES` images, and return their indices.

    The sample contains the same share of each class, but at least `FOLDS` images of a class (or all, if it has fewer).
    """
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
    """Return the class probabilities of each image, (n, classes), from a model that was not fitted on its group."""
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    scores = np.zeros((len(features), int(given.max()) + 1))
    # One thread, because on such small matrices several threads mostly wait for one another.
    with warnings.catch_warnings(), threadpool_limits(1):
        # The features are scaled and reduced once for all folds, because neither step uses the labels.
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

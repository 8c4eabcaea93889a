"""What changes in a network's predictions when something is taken out of it, image by image."""

from typing import Protocol

import numpy as np

from rfatlas.statistics import bootstrap_mean, mcnemar, paired_newcombe

#: Keys of `changes`, in the order of the tables.
COLUMNS = (
    "delta_top1", "delta_top1_lo", "delta_top1_hi",
    "delta_top5", "delta_top5_lo", "delta_top5_hi",
    "delta_loss", "delta_loss_lo", "delta_loss_hi",
    "p", "n_flips", "right_to_wrong", "wrong_to_right",
)  # fmt: skip


class Predictions(Protocol):
    """Of N images, as `ablate.Judged`: `prediction` the class, `in_top5` whether the label is among
    the five likeliest, `loss` in nats; each (N,) or (sets, N)."""

    prediction: np.ndarray
    in_top5: np.ndarray
    loss: np.ndarray


def changes(
    found: Predictions, reference: Predictions, labels: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return what changes from `reference` to `found`: `COLUMNS`, each (sets,).

    Differences are `found` minus `reference`, with 95 % intervals: Newcombe's paired one for
    accuracies, the bootstrap over images for the mean loss. `p` is McNemar's exact test, flips are
    images whose prediction becomes right or wrong.

    Parameters
    ----------
    found
        (sets, N).
    reference
        (N,), or (sets, N) where each set has one of its own.
    labels
        (N,) classes.
    seed
        Of the bootstrap.
    """
    result = {}
    count = len(labels)
    pairs = {
        "top1": (found.prediction == labels, reference.prediction == labels),
        "top5": (found.in_top5, reference.in_top5),
    }
    for name, (after, before) in pairs.items():
        gained, lost = (after & ~before).sum(-1), (before & ~after).sum(-1)
        result[f"delta_{name}"] = (gained - lost) / count
        interval = paired_newcombe((after & before).sum(-1), gained, lost, count)
        result[f"delta_{name}_lo"], result[f"delta_{name}_hi"] = interval
        if name == "top1":
            result |= {"p": mcnemar(gained, lost), "n_flips": gained + lost}
            result |= {"right_to_wrong": lost, "wrong_to_right": gained}
    difference = found.loss.astype(float) - reference.loss
    result["delta_loss"] = difference.mean(-1)
    interval = bootstrap_mean(difference, seed=seed)
    result["delta_loss_lo"], result["delta_loss_hi"] = interval
    return {name: result[name] for name in COLUMNS}

"""What changes in a network's predictions when something is taken out of it, image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rfatlas.statistics import bootstrap_mean, mcnemar, paired_newcombe

#: Keys of `changes`, in the order of the tables.
COLUMNS = (
    "delta_top1", "delta_top1_lo", "delta_top1_hi",
    "delta_top5", "delta_top5_lo", "delta_top5_hi",
    "delta_loss", "delta_loss_lo", "delta_loss_hi",
    "p", "n_flips", "right_to_wrong", "wrong_to_right",
)  # fmt: skip


#: What is known of an image's prediction.
FIELDS = ("prediction", "in_top5", "loss")


@dataclass(frozen=True)
class Predictions:
    """Predictions of N images, or of these without each of some sets of channels: (N,) or (sets,
    N).

    `prediction` int16 is the class of the largest logit, `in_top5` bool whether the label is among
    the five largest (of equal logits, that of the lower class goes first), `loss` f32 the cross
    entropy in nats; -1, False and NaN where the network was not run.
    """

    prediction: np.ndarray
    in_top5: np.ndarray
    loss: np.ndarray

    @classmethod
    def empty(cls, *shape: int) -> "Predictions":
        """Return predictions of which none is known yet."""
        return cls(
            np.full(shape, -1, np.int16), np.zeros(shape, bool), np.full(shape, np.nan, np.float32)
        )

    @classmethod
    def read(cls, group: Mapping[str, Any]) -> "Predictions":
        """Return those of a group of an open file."""
        return cls(*(group[name][:] for name in FIELDS))

    @classmethod
    def joined(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """Return the predictions of some images after those of others."""
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in FIELDS)
        )

    def write(self, group: Any) -> None:
        """Write them to a group of an open file."""
        for name in FIELDS:
            group[name] = getattr(self, name)

    def put(self, at: Any, values: "Predictions") -> None:
        """Set the entries at an index."""
        for name in FIELDS:
            getattr(self, name)[at] = getattr(values, name)

    def take(self, at: Any) -> "Predictions":
        """Return the entries at an index."""
        return Predictions(*(getattr(self, name)[at] for name in FIELDS))


def changes(
    found: Predictions, reference: Predictions, labels: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return what changes from `reference` to `found`: `COLUMNS`, each (sets,).

    Differences are `found` minus `reference`, with 95 % intervals: Newcombe's paired one for
    accuracies, the bootstrap over images for the mean loss. `p` is McNemar's exact test, flips are
    images whose prediction becomes right or wrong. `found` is (sets, N), `reference` (N,), or
    (sets, N) where each set has one of its own; `labels` (N,) are classes, `seed` that of the
    bootstrap.
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

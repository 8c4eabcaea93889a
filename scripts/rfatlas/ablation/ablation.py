"""Stage `ablation`: what the network loses with one channel replaced, for every channel.

`sweep` works on a range of places in the order of the images (see `ablate.sequence`) and keeps
every prediction; `gather` joins the ranges of a layer and turns predictions into statistics, all
paired by image: the same images with and without the channel.
"""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from rfatlas import statistics
from rfatlas.ablation import paired
from rfatlas.ablation.paired import Predictions
from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.files.task import Task

if TYPE_CHECKING:
    from rfatlas.ablation import ablate

log = logging.getLogger("rfatlas")

STAGE = "ablation"

# Pairs of image and channel that are one step of the work.
_STEP_PAIRS = 512
# A cached logit may differ from one computed anew by this share of the largest: another device.
_ROUNDING = 1e-2

#: Names of the columns of one mode, behind `<mode>_`.
COLUMNS = (*paired.COLUMNS[:-3], "q", *paired.COLUMNS[-3:], "n_images")


# ---- one range of images


def sweep(
    ablator: "ablate.Ablator",
    images: Any,
    labels: np.ndarray,
    order: np.ndarray,
    start: int,
    stop: int,
    cached: Mapping[str, Any],
    settings: Mapping[str, Any],
    task: Task,
) -> None:
    """Write the predictions of the images at the places [start, stop) of the order.

    Parameters
    ----------
    ablator
        The network, cut at the layer of this job.
    images, labels
        uint8 (N, H, W, 3) and int (N,): the packed images.
    order
        (M,) from `ablate.sequence`; a `stop` beyond is clipped.
    cached
        `logits` (N, classes) and `features` (N, D) of activations.h5. The logits are compared with
        those computed here; the features serve a layer in closed form.
    settings
        `modes`, `all_modes_layers`, `site`, `channels`, `precision`, `batch_size` of the config.
    task
        Killed, the work resumes from `<output>.partial`.

    Raises
    ------
    RfatlasError
        If the cached logits are not this network's.
    """
    start, stop = min(start, len(order)), min(stop, len(order))
    progress = store.Partial(task.output, task.fingerprint(device=""))
    steps = store.Steps(progress)
    channels = np.arange(ablator.channels)[: settings["channels"]]
    every = ablator.layer in settings["all_modes_layers"]
    modes = ("zero", "mean", "shuffle") if every else settings["modes"]
    at_weights = settings["site"] == "weight" and ablator.has_filters()
    found = {mode: Predictions.empty(len(channels), stop - start) for mode in modes}
    intact = Predictions.empty(stop - start)
    total = len(modes) * len(channels) * (stop - start)
    with task.bar(total=total, unit="pair", desc="image x channel") as shown:
        for first in range(start, stop, settings["batch_size"]):
            last = min(first + settings["batch_size"], stop)
            part = slice(first - start, last - start)
            seen = functools.cache(partial(_seen, ablator, images, cached, order, first, last))
            target = labels[order[first:last]]
            step = steps.take(
                f"{first}/intact",
                lambda seen=seen, target=target: vars(ablator.intact(seen(), target)),
            )
            intact.put(part, Predictions(**step))
            for mode, results in found.items():
                name = "weight" if at_weights and mode == "zero" else mode
                active = _unsettled(results, intact, labels[order[start:first]], settings)
                size = max(1, _STEP_PAIRS // (last - first))
                for lowest in range(0, len(active), size):
                    some = active[lowest : lowest + size]
                    step = steps.take(
                        f"{first}/{mode}/{lowest}",
                        lambda name=name, some=some, seen=seen, target=target: vars(
                            ablator.ablate(seen(), channels[some, None], name, target)
                        ),
                    )
                    results.put((some, part), Predictions(**step))
                    shown.update(len(some) * (last - first))
                shown.update((len(channels) - len(active)) * (last - first))
    steps.save()
    rows = order[start:stop]
    place = {"start": start, "stop": stop, "total": len(order)}
    with store.create(task.output, {**task.attrs, **place}) as file:
        file["image"], file["label"] = rows.astype(np.int32), labels[rows]
        file["channel"] = channels.astype(np.int32)
        intact.write(file.create_group("intact"))
        for mode, results in found.items():
            results.write(file.create_group(mode))
            _tell(ablator.layer, mode, channels, results, intact, labels[rows])
    progress.finish()


def _seen(
    ablator: "ablate.Ablator",
    images: Any,
    cached: Mapping[str, Any],
    order: np.ndarray,
    first: int,
    last: int,
) -> "ablate.Seen":
    """Return what the network makes of the images at the places [first, last) of the order."""
    # Gathering ranges, which needs no network, does not wait for torch.
    from rfatlas.ablation import ablate

    rows = ablate.with_partner(order, first, last)
    logits = ablate.read_rows(cached["logits"], rows[:-1])
    if ablator.closed:
        return ablator.recall(ablate.read_rows(cached["features"], rows), logits)
    seen = ablator.see(ablate.read_rows(images, rows))
    error = np.abs(seen.logits.cpu().numpy() - logits).max()
    if error > _ROUNDING * max(np.abs(logits).max(), 1):
        raise RfatlasError(
            f"ablation: the intact network's logits differ by {error:.3g} from those in "
            "activations.h5, which come from other weights or images: delete it and rerun that "
            "stage"
        )
    return seen


def _counts(
    prediction: np.ndarray, intact: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Count the images of each channel by what became of them, from predictions (C, N), -1 where
    there is none, and (N,) of the intact network."""
    known, right, was_right = prediction >= 0, prediction == labels, intact == labels
    return {
        "both": (right & was_right).sum(1),
        "gained": (right & ~was_right).sum(1),
        "lost": (known & ~right & was_right).sum(1),
        "trials": known.sum(1),
    }


def _unsettled(
    results: Predictions, intact: Predictions, labels: np.ndarray, settings: Mapping[str, Any]
) -> np.ndarray:
    """Return the channels that are still run: with a precision, those whose interval after the
    images with `labels` reaches further than it from the change of top-1 accuracy."""
    channels, seen = len(results.prediction), len(labels)
    precision = settings["precision"]
    if precision is None or not seen:
        return np.arange(channels)
    first = results.take((..., slice(seen)))
    counts = _counts(first.prediction, intact.prediction[:seen], labels)
    lo, hi = statistics.paired_newcombe(**counts)
    change = (counts["gained"] - counts["lost"]) / counts["trials"]
    stopped = first.prediction[:, -1] < 0
    wide = np.maximum(hi - change, change - lo) > precision["delta_top1"]
    return np.flatnonzero(wide & ~stopped)


def _tell(
    layer: str,
    mode: str,
    channels: np.ndarray,
    results: Predictions,
    intact: Predictions,
    labels: np.ndarray,
) -> None:
    """Log what happened to these images, channel by channel."""
    counts = _counts(results.prediction, intact.prediction, labels)
    change = np.where(results.prediction >= 0, results.loss - intact.loss, 0)
    loss = change.sum(1) / np.maximum(counts["trials"], 1)
    for row, channel in enumerate(channels):
        log.info(
            "%s channel %d, %s: of %d images %d right to wrong, %d wrong to right, loss %+.4f",
            layer,
            channel,
            mode,
            counts["trials"][row],
            counts["lost"][row],
            counts["gained"][row],
            loss[row],
        )


# ---- all ranges of one layer


def statistics_of(
    results: Predictions, intact: Predictions, labels: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Return the columns `COLUMNS` of one layer and mode, (C,) each.

    `results` (C, N) with a channel replaced, in the order of the ablation, -1 in `prediction`
    behind the last image of a channel that was stopped early, which counts with its first images
    only; `intact` (N,) without; `labels` (N,) classes of the images; `seed` of the bootstrap.
    """
    count = (results.prediction >= 0).sum(1)
    columns = {name: np.zeros(len(count)) for name in COLUMNS}
    columns["n_images"] = count
    for images in np.unique(count):
        rows, first = np.flatnonzero(count == images), slice(int(images))
        found = paired.changes(results.take((rows, first)), intact.take(first), labels[first], seed)
        for name, values in found.items():
            columns[name][rows] = values
    for name in ("n_flips", "right_to_wrong", "wrong_to_right"):
        columns[name] = columns[name].astype(int)
    columns["q"] = statistics.benjamini_hochberg(columns["p"])
    return {name: columns[name] for name in COLUMNS}


def class_delta(
    prediction: np.ndarray, intact: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """Return the change of top-1 accuracy of each class, f32 (C, classes), NaN without images, from
    predictions (C, N), -1 where there is none, and (N,)."""
    known = prediction >= 0
    change = np.where(known, (prediction == labels) * 1.0 - (intact == labels), 0)
    member = np.zeros((len(labels), classes))
    member[np.arange(len(labels)), labels] = 1
    with np.errstate(invalid="ignore"):
        return (change @ member / (known @ member)).astype(np.float32)


def gather(
    ranges: Sequence[str | Path],
    layer: str,
    modes: Sequence[str],
    classes: int,
    seed: int,
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    `ranges` are files of `sweep`, in order; `modes` all those of the table, in order: columns are
    empty where the layer lacks the mode; `classes` the number of the network's; `seed` of the
    bootstrap. Raises RfatlasError as `store.ranges` does.
    """
    image, label, channel, found = _joined(ranges)
    intact = found.pop("intact")
    columns: dict[str, Any] = {"layer": layer, "channel": channel}
    # Written in the order of the data set, so that files of different layers compare by row.
    place = np.argsort(image)
    with store.create(task.output, task.attrs) as file:
        file["channel"], file["image"] = channel, image[place]
        file["label"] = label[place]
        intact.take(place).write(file.create_group("intact"))
        file.attrs.update(
            top1=(intact.prediction == label).mean(),
            top5=intact.in_top5.mean(),
            loss=intact.loss.mean(dtype=float),
        )
        for mode in modes:
            if mode not in found:
                columns |= {f"{mode}_{name}": np.full(len(channel), np.nan) for name in COLUMNS}
                continue
            results = found[mode]
            changed = statistics_of(results, intact, label, seed)
            columns |= {f"{mode}_{name}": values for name, values in changed.items()}
            results.take((..., place)).write(file.create_group(mode))
            file[f"{mode}/class_delta"] = class_delta(
                results.prediction, intact.prediction, label, classes
            )
    table = pd.DataFrame(columns)
    store.write_table(table, task.table)
    for line in _notable(table, layer, [mode for mode in modes if mode in found]):
        log.info("%s", line)


def _notable(table: pd.DataFrame, layer: str, modes: Iterable[str]) -> list[str]:
    """Return a line per mode on the channels that matter most."""
    lines = []
    for mode in modes:
        order = table[f"{mode}_delta_top1"].sort_values(kind="stable").index[:5]
        worst = ", ".join(
            f"{table.loc[row, 'channel']} ({table.loc[row, f'{mode}_delta_top1']:+.4f})"
            for row in order
        )
        significant = int((table[f"{mode}_q"] < 0.05).sum())
        lines.append(
            f"{layer}, {mode}: {significant} of {len(table)} channels with q < 0.05; largest "
            f"losses of top-1 accuracy: channel {worst}"
        )
    return lines


def _joined(
    ranges: Sequence[str | Path],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Predictions]]:
    """Return images and labels in the order of the ablation, channels, and predictions by `intact`
    and mode, of all ranges of a layer."""
    image, label, found = [], [], {}
    for file in store.ranges(ranges, STAGE):
        image.append(file["image"][:])
        label.append(file["label"][:])
        channel = file["channel"][:]
        for name, group in file.items():
            if isinstance(group, h5py.Group):
                found.setdefault(name, []).append(Predictions.read(group))
    predictions = {name: Predictions.joined(parts) for name, parts in found.items()}
    return np.concatenate(image), np.concatenate(label), channel, predictions

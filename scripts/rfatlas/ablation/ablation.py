"""Stage `ablation`: what the network loses with one channel replaced, for every channel.

`sweep` works on a range of places in the order of the images (see `ablate.sequence`) and keeps
every prediction; `gather` joins the ranges of a layer and turns predictions into statistics, all
paired by image: the same images with and without the channel. Where there are first-order estimates
of more images (`first_order`), the effects on loss and top-1 are those on all of them (`combined`).
"""

import functools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from rfatlas import statistics
from rfatlas.ablation import combined, paired
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
COLUMNS = (*paired.COLUMNS[:-3], "q", *paired.COLUMNS[-3:], "n_exact")

#: Those that come with estimates.
ESTIMATE_COLUMNS = (
    "n_estimate", "estimate_loss", "estimate_r", "variance_ratio",
    "estimate_r_top1", "variance_ratio_top1",
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What is expected of a layer in one mode (see `combined.expected`): `known` by target (C, n)
    of the images at the first n places of the order, `mean` and variance (`spread`) by target (C,)
    over all `images`."""

    known: Mapping[str, np.ndarray]
    mean: Mapping[str, np.ndarray]
    spread: Mapping[str, np.ndarray]
    images: int

    @classmethod
    def none(cls, channels: int, n: int) -> "Estimate":
        """Return one that expects nothing of n images."""
        nothing = ((channels, n), channels, channels)
        return cls(*(dict.fromkeys(combined.TARGETS, np.zeros(shape)) for shape in nothing), n)


def read_estimates(ranges: Sequence[str | Path], layer: str) -> dict[str, Estimate]:
    """Return what files of `first_order.measure`, in order, say of a layer, by mode.

    Raises RfatlasError as `store.ranges` does.
    """
    intact, changes, sums = [], {}, {}
    for file in store.ranges(ranges, STAGE):
        intact.append(file["intact"][:])
        for mode, group in file[f"layer/{layer}"].items():
            changes.setdefault(mode, []).append(group["change"][:])
            sums[mode] = sums.get(mode, 0) + group["expected"][:]
        total = int(file.attrs["total"])
    before = np.concatenate(intact, axis=1)
    found = {}
    for mode, parts in changes.items():
        known = combined.expected(*before, *np.concatenate(parts, axis=1)).swapaxes(1, 2)
        mean, square = sums[mode] / total
        values = (known, mean, square - mean**2)
        found[mode] = Estimate(
            *(dict(zip(combined.TARGETS, each, strict=True)) for each in values), total
        )
    return found


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
    estimates: Mapping[str, Estimate] | None = None,
) -> None:
    """Write the predictions of the images at the places [start, stop) of the order.

    `ablator` is the network, cut at the layer of this job; `images` uint8 (N, H, W, 3) and `labels`
    int (N,) are the packed images; `order` (M,) is that of `ablate.sequence`, of which the first
    `images` of the settings are run (a `stop` beyond is clipped). `cached` are `logits` (N,
    classes) and `features` (N, D) of activations.h5: the logits are compared with those computed
    here, the features serve a layer in closed form. `settings` holds `images`, `modes`,
    `all_modes_layers`, `site`, `channels`, `precision` and `batch_size` of the config. With a
    precision, all images of the order must be one range, and `estimates`, by mode, save exact
    images. Killed, the work resumes from `<output>.partial`.

    Raises RfatlasError if the cached logits are not this network's.
    """
    total = min(settings["images"] or len(order), len(order))
    start, stop = min(start, total), min(stop, total)
    progress = store.Partial(task.output, task.fingerprint(device=""))
    steps = store.Steps(progress)
    channels = np.arange(ablator.channels)[: settings["channels"]]
    modes = modes_of(ablator.layer, settings)
    acting = {mode: ablator.replacement.at(settings["site"], mode) for mode in modes}
    found = {mode: Predictions.empty(len(channels), stop - start) for mode in modes}
    intact = Predictions.empty(stop - start)
    pilot = _pilot(settings, stop - start)
    needed = {mode: np.full(len(channels), stop) for mode in modes}
    pairs = len(modes) * len(channels) * (stop - start)
    with task.bar(total=pairs, unit="pair", desc="image x channel") as shown:
        for first in range(start, stop, settings["batch_size"]):
            if first == start + pilot:
                rows = order[start:first]
                needed = {
                    mode: _needed(
                        results.take((..., slice(pilot))),
                        intact.take(slice(pilot)),
                        labels[rows],
                        (estimates or {}).get(mode) or Estimate.none(len(channels), total),
                        settings["precision"],
                    )
                    for mode, results in found.items()
                }
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
                active = np.flatnonzero(needed[mode] > first - start)
                size = max(1, _STEP_PAIRS // (last - first))
                for lowest in range(0, len(active), size):
                    some = active[lowest : lowest + size]
                    step = steps.take(
                        f"{first}/{mode}/{lowest}",
                        lambda mode=acting[mode], some=some, seen=seen, target=target: vars(
                            ablator.ablate(seen(), channels[some, None], mode, target)
                        ),
                    )
                    results.put((some, part), Predictions(**step))
                    shown.update(len(some) * (last - first))
                shown.update((len(channels) - len(active)) * (last - first))
    steps.save()
    rows = order[start:stop]
    place = {"start": start, "stop": stop, "total": total, "pilot": pilot}
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


def modes_of(layer: str, settings: Mapping[str, Any]) -> Sequence[str]:
    """Return the modes that a layer is ablated in."""
    every = layer in settings["all_modes_layers"]
    return ("zero", "mean", "shuffle") if every else settings["modes"]


def _pilot(settings: Mapping[str, Any], images: int) -> int:
    """Return how many images all channels are run on: whole batches."""
    if settings["precision"] is None:
        return images
    batch = settings["batch_size"]
    return min(images, math.ceil(settings["precision"]["pilot"] / batch) * batch)


def _changes(
    results: Predictions, intact: Predictions, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the changes (C, n) of loss and correctness by target, NaN where nothing was run."""
    known = results.prediction >= 0
    right = (results.prediction == labels) * 1.0 - (intact.prediction == labels)
    loss = results.loss.astype(float) - intact.loss
    return {"loss": np.where(known, loss, np.nan), "top1": np.where(known, right, np.nan)}


def _needed(
    results: Predictions,
    intact: Predictions,
    labels: np.ndarray,
    estimate: Estimate,
    precision: Mapping[str, Any],
) -> np.ndarray:
    """Return how many exact images each channel needs (C,) for the precision, from its pilot."""
    counts = np.full(len(results.prediction), len(labels))
    for target, change in _changes(results, intact, labels).items():
        half = precision[f"delta_{target}"]
        if half is not None:
            known = estimate.known[target][:, : len(labels)]
            pilot = combined.fit(change, known, target == "top1")
            counts = np.maximum(counts, combined.wanted(pilot, estimate.images, half))
    return counts


def _tell(
    layer: str,
    mode: str,
    channels: np.ndarray,
    results: Predictions,
    intact: Predictions,
    labels: np.ndarray,
) -> None:
    """Log what happened to these images, channel by channel."""
    text = "%s channel %d, %s: of %d images %d right to wrong, %d wrong to right, loss %+.4f"
    change = _changes(results, intact, labels)
    known, right = np.isfinite(change["loss"]).sum(1), change["top1"]
    loss = np.nansum(change["loss"], axis=1) / np.maximum(known, 1)
    rows = zip(channels, known, (right < 0).sum(1), (right > 0).sum(1), loss, strict=True)
    for channel, *numbers in rows:
        log.info(text, layer, channel, mode, *numbers)


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
    columns["n_exact"] = count
    for images in np.unique(count):
        rows, first = np.flatnonzero(count == images), slice(int(images))
        found = paired.changes(results.take((rows, first)), intact.take(first), labels[first], seed)
        for name, values in found.items():
            columns[name][rows] = values
    for name in ("n_flips", "right_to_wrong", "wrong_to_right"):
        columns[name] = columns[name].astype(int)
    columns["q"] = statistics.benjamini_hochberg(columns["p"])
    return {name: columns[name] for name in COLUMNS}


def combine(
    columns: Mapping[str, np.ndarray],
    changed: Mapping[str, np.ndarray],
    found: Estimate,
    pilot: int,
) -> dict[str, np.ndarray]:
    """Return the columns of one layer and mode with the effects on loss and top-1 taken over all
    images that there are estimates of; `changed` from `_changes`, and see `combined.effects`."""
    result = dict(columns)
    for target, change in changed.items():
        n = change.shape[1]
        known = found.known[target][..., :n]
        effects = combined.effects(
            change,
            known,
            found.mean[target],
            found.spread[target],
            found.images,
            pilot,
            target == "top1",
        )
        result[f"delta_{target}"] = effects["effect"]
        most = 1 if target == "top1" else np.inf
        for end in ("lo", "hi"):
            result[f"delta_{target}_{end}"] = np.clip(effects[end], -most, most)
        name = "" if target == "loss" else f"_{target}"
        result[f"estimate_r{name}"] = effects["r"]
        result[f"variance_ratio{name}"] = effects["variance_ratio"]
    result["p"] = effects["p"]
    result["q"] = statistics.benjamini_hochberg(result["p"])
    result["n_estimate"] = np.full(len(result["p"]), found.images)
    result["estimate_loss"] = found.mean["loss"]
    return result


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
    estimates: Sequence[str | Path] = (),
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    `ranges` are files of `sweep`, in order; `modes` all those of the table, in order: columns are
    empty where the layer lacks the mode; `classes` the number of the network's; `seed` of the
    bootstrap; `estimates` files of `first_order.measure`, in order, if there are any. Raises
    RfatlasError as `store.ranges` does.
    """
    image, label, channel, found, pilot = _joined(ranges)
    intact = found.pop("intact")
    estimated = read_estimates(estimates, layer) if estimates else {}
    names = COLUMNS + (ESTIMATE_COLUMNS if estimates else ())
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
                columns |= {f"{mode}_{name}": np.full(len(channel), np.nan) for name in names}
                continue
            results = found[mode]
            made = statistics_of(results, intact, label, seed)
            estimate = estimated.get(mode) or Estimate.none(len(channel), len(label))
            if pilot < len(label) or estimate.images > len(label):
                made = combine(made, _changes(results, intact, label), estimate, pilot)
            columns |= {f"{mode}_{name}": made.get(name, np.nan) for name in names}
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Predictions], int]:
    """Return images and labels in the order of the ablation, channels, predictions by `intact` and
    mode, of all ranges of a layer, and how many of the images were its pilot."""
    image, label, found, pilot = [], [], {}, 0
    for file in store.ranges(ranges, STAGE):
        pilot += int(file.attrs["pilot"])
        image.append(file["image"][:])
        label.append(file["label"][:])
        channel = file["channel"][:]
        for name, group in file.items():
            if isinstance(group, h5py.Group):
                found.setdefault(name, []).append(Predictions.read(group))
    predictions = {name: Predictions.joined(parts) for name, parts in found.items()}
    return np.concatenate(image), np.concatenate(label), channel, predictions, pilot

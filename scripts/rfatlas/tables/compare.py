"""Stage `compare`: networks side by side, in groups of runs on the same images.

The first run of a group is the reference. How accurate is each network (`runs`)? Which share of the
channels of each layer is selective, opponent, inactive (`fractions`), and how do sizes and indices
differ (`quantities`)? Which channel of the reference is which of another network (`matched`, by
layer `matching`), and how alike are whole layers (`similarity`)? Layers are paired by name; a layer
that only one network has is listed alone, except in `similarity`, which compares every layer with
every other. Tables come from channels.csv, what is paired image by image from activations.h5.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import h5py
import numpy as np
import pandas as pd
from scipy import stats

from rfatlas.errors import RfatlasError
from rfatlas.physiology.color_rules import DOUBLE, SINGLE, UNRESPONSIVE
from rfatlas.statistics import by_layer, mcnemar, paired_newcombe, rows_by_layer
from rfatlas.tables import counted
from rfatlas.tables import similarity as alike
from rfatlas.tables.counted import framed, quartiles, truth

#: Indices and sizes of channels that are compared, as far as channels.csv has them.
QUANTITIES = (
    "rf_size", "erf_sigma", "erf_fraction", "split_half", "fraction_active", "class_selectivity",
    "osi", "circular_variance", "bandwidth_deg", "sf_cpp", "f1_f0", "gabor_r2", "chromatic_share",
    "color_selectivity",
)  # fmt: skip

#: A function of channels.csv that gives a number per channel, NaN where it is not known, or None
#: where the stage was off.
Measure = Callable[[pd.DataFrame], np.ndarray | None]

#: A channel counts as found again if it correlates at least so much with its match.
SAME = 0.5

RUNS = (
    "run", "reference", "factory", "weights", "parameters", "gflops", "labelled",
    "top1", "top1_lo", "top1_hi", "top5", "top5_lo", "top5_hi", "loss",
    *counted.DIFFERENCE, "p", "only_reference_right", "only_run_right", "agreement",
)  # fmt: skip
FRACTIONS = (
    "run", "layer", "depth", "property", "n", "count", *counted.PROPORTION,
    "reference_n", "reference_count", "reference_fraction", *counted.DIFFERENCE,
)  # fmt: skip
QUANTILES = (
    "run", "layer", "depth", "quantity", "n", "q25", "median", "q75",
    "reference_n", "reference_median", "difference", "superiority",
)  # fmt: skip
MATCHED = (
    "run", "layer", "channel", "run_channel", "correlation", "best_channel", "best_correlation",
)  # fmt: skip
MATCHING = (
    "run", "layer", "depth", "reference_channels", "channels", "matched", "q25", "median", "q75",
    "share_same", "chance_median", "chance_share_same",
)  # fmt: skip
SIMILARITY = (
    "run", "layer", "depth", "other_run", "other_layer", "other_depth", "images",
    "directions", "other_directions", "cka", "cka_debiased", "cka_chance", "svcca", "svcca_chance",
)  # fmt: skip


def _flag(rows: pd.DataFrame, name: str) -> np.ndarray | None:
    return truth(rows[name]) if name in rows else None


def _class(rows: pd.DataFrame, *classes: str) -> np.ndarray | None:
    if "color_class" not in rows:
        return None
    known = rows["color_class"].notna() & (rows["color_class"] != UNRESPONSIVE)
    return np.where(known, rows["color_class"].isin(classes), np.nan)


def _number(rows: pd.DataFrame, name: str) -> np.ndarray | None:
    if name not in rows:
        return None
    values = rows[name].to_numpy(float)
    return values[rows["rectified"].to_numpy(bool)] if name == "fraction_active" else values


#: What a channel may be, 1 or 0.
PROPERTIES: dict[str, Measure] = {
    "orientation_selective": lambda rows: _flag(rows, "orientation_selective"),
    "opponent": lambda rows: _class(rows, SINGLE, DOUBLE),
    SINGLE: lambda rows: _class(rows, SINGLE),
    DOUBLE: lambda rows: _class(rows, DOUBLE),
    "harris_double": lambda rows: _flag(rows, "harris_double"),
    "inactive": lambda rows: _flag(rows, "inactive"),
}


def check_images(files: Mapping[str, h5py.File]) -> None:
    """Raise RfatlasError, naming both runs, unless all runs looked at the same images.

    `files` holds the open activations.h5 of each run; they must have equally many images with the
    same labels.
    """
    (first, reference), *others = files.items()
    for name, file in others:
        labels, expected = file["output/labels"][:], reference["output/labels"][:]
        if not np.array_equal(labels, expected):
            raise RfatlasError(
                f"{file.filename}: run {name!r} has {len(labels)} images, run {first!r} "
                f"{len(expected)}, or their labels differ; only runs on the same images can be "
                "compared (one data set, and no image skipped in one of them)"
            )


def runs(files: Mapping[str, h5py.File], descriptions: Mapping[str, Mapping]) -> pd.DataFrame:
    """Compare the accuracy of the runs, image by image; one row (`RUNS`) per run.

    `descriptions` holds model.json of each run. Shares have 95 % Wilson intervals; `difference` is
    the run's top-1 accuracy minus the reference's with Newcombe's interval for paired proportions,
    `p` is McNemar's exact test. `agreement` is the share of images, labelled or not, which both
    give the same class. Empty without a classifier or labels.
    """
    reference = next(iter(files))
    guesses = {name: _guesses(file) for name, file in files.items()}
    described = ("factory", "weights", "parameters", "gflops")
    rows = []
    for name, file in files.items():
        row = {"run": name, "reference": name == reference}
        row |= {key: descriptions[name][key] for key in described}
        if guesses[name] is not None:
            row |= _accuracy(file)
            if name != reference and guesses[reference] is not None:
                labels = file["output/labels"][:]
                row |= _paired(guesses[name], guesses[reference], labels)
        rows.append(row)
    found = pd.DataFrame(rows).reindex(columns=list(RUNS))
    counts = ["labelled", "only_reference_right", "only_run_right"]
    return found.astype(dict.fromkeys(counts, "Int64"))


def _guesses(file: h5py.File) -> np.ndarray | None:
    """The class that each image is given (n,), or None without a classifier."""
    if "logits" not in file["output"]:
        return None
    logits = file["output/logits"]
    starts = range(0, len(logits), 4096)
    return np.concatenate([logits[start : start + 4096].argmax(axis=1) for start in starts])


def _accuracy(file: h5py.File) -> dict[str, float]:
    attrs = file["output"].attrs
    labelled = int(attrs["labelled"])
    row = {"labelled": labelled}
    if labelled:
        row["loss"] = attrs.get("loss", np.nan)
        for name in ("top1", "top5"):
            right = round(attrs[name] * labelled)
            row[name], row[f"{name}_lo"], row[f"{name}_hi"] = counted.proportion(right, labelled)
    return row


def _paired(own: np.ndarray, other: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What is known of two networks' guesses (n,) at the same images; -1 is an unknown label."""
    row = {"agreement": np.mean(own == other)}
    known = labels >= 0
    n = int(known.sum())
    if n:
        right, other_right = own[known] == labels[known], other[known] == labels[known]
        lost, won = int((other_right & ~right).sum()), int((right & ~other_right).sum())
        both = int((right & other_right).sum())
        row["difference"] = (won - lost) / n
        row["difference_lo"], row["difference_hi"] = paired_newcombe(both, won, lost, n)
        row["p"] = mcnemar(won, lost)
        row["only_reference_right"], row["only_run_right"] = lost, won
    return row


def fractions(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count the channels of each layer that have one of `PROPERTIES`.

    `tables` holds channels.csv of each run, the reference first. Returns one row (`FRACTIONS`) per
    run, layer and property. Fractions are of the channels of which the property is known, with 95 %
    Wilson intervals; `difference` is the run's minus the reference's in the layer of the same name,
    with Newcombe's interval. Properties of stages that were off have no rows.
    """
    rows = []
    for *place, values, others in _beside_reference(tables, PROPERTIES):
        count, n = int(values.sum()), values.size
        known = None if others is None else (int(others.sum()), others.size)
        _, total, its_count, its_share, *_, apart, low, high = counted.against(count, n, "", known)
        row = (*place, n, count, *counted.proportion(count, n), total, its_count, its_share)
        rows.append((*row, apart, low, high))
    return framed(rows, FRACTIONS, ("reference_n", "reference_count"))


def quantities(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return median and quartiles of `QUANTITIES` over the channels of each layer.

    `tables` as for `fractions`. One row (`QUANTILES`) per run, layer and quantity; `difference` is
    the run's median minus the reference's, `superiority` the probability that a channel of the run
    exceeds one of the reference, ties counting half (0.5 where they are alike; Mann & Whitney's U
    over the number of pairs). `fraction_active` is missing where a layer is not rectified.
    """
    rows = []
    measures = {name: partial(_number, name=name) for name in QUANTITIES}
    for *place, values, others in _beside_reference(tables, measures):
        row = [*place, values.size, *quartiles(values), pd.NA, *[np.nan] * 3]
        if others is not None:
            middle = quartiles(others)[1]
            row[-4:] = others.size, middle, row[6] - middle, _superiority(values, others)
        rows.append(row)
    return framed(rows, QUANTILES, ["reference_n"])


def _beside_reference(
    tables: Mapping[str, pd.DataFrame], measures: Mapping[str, Measure]
) -> Iterator[tuple[str, str, int, str, np.ndarray, np.ndarray | None]]:
    """Yield run, layer, depth, name, known values (n,), and those of the reference in the layer of
    the same name: None in the reference itself, and where it has none."""
    reference = next(iter(tables))
    known: dict[tuple[str, str], np.ndarray] = {}
    for run, table in tables.items():
        for layer, depth, members in by_layer(table):
            for name, measure in measures.items():
                values = measure(members)
                if values is None:
                    continue
                values = values[np.isfinite(values)]
                yield run, layer, depth, name, values, known.get((layer, name))
                if run == reference:
                    known[layer, name] = values


def matched(
    files: Mapping[str, h5py.File], layers: Mapping[str, Sequence[str]], seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match the channels of the reference with those of the other runs, one to one.

    Channels are matched by the correlation of their maxima over each image, so that the sum of
    correlations over a layer is largest; whatever the order of channels, two networks that learned
    the same would match perfectly. `layers` are the layers of each run, in network order. Returns
    one row (`MATCHED`) per matched channel of the reference, with its match (`run_channel`) and the
    channel that it correlates with most, which several may share; and one row (`MATCHING`) per run
    and layer, with quartiles, the share of the reference's channels that correlate at least `SAME`
    with their match, and what both are by chance, images permuted.
    """
    pairs, summary = [], []
    (reference, own), *others = files.items()
    for run, file in others:
        for depth, layer in enumerate(layers[reference]):
            if layer not in layers[run]:
                continue
            maxima = [one[layer]["image_max"] for one in (own, file)]
            # The products of the one with the other alone, not of each with itself.
            found = alike.Moments(maxima, seed, tile=1)
            correlation = alike.correlations(found, 0, 1)
            channels, partners = alike.match(correlation)
            values = correlation[channels, partners]
            for channel, partner, value in zip(channels, partners, values, strict=True):
                best = int(np.nanargmax(correlation[channel]))
                row = (run, layer, channel, partner, value, best, correlation[channel, best])
                pairs.append(row)
            shuffled = alike.correlations(found, 0, 1, shuffled=True)
            chance = shuffled[alike.match(shuffled)]
            sizes = [one.shape[1] for one in maxima]
            own_share, by_chance = ((r >= SAME).sum() / sizes[0] for r in (values, chance))
            middle = quartiles(chance)[1]
            row = (run, layer, depth, *sizes, values.size, *quartiles(values))
            summary.append((*row, own_share, middle, by_chance))
    return (
        pd.DataFrame(pairs, columns=list(MATCHED)),
        pd.DataFrame(summary, columns=list(MATCHING)),
    )


def similarity(
    files: Mapping[str, h5py.File],
    layers: Mapping[str, Sequence[str]],
    feature: str = "image_mean",
    variance: float = 0.99,
    seed: int = 0,
) -> pd.DataFrame:
    """Return CKA and SVCCA of every layer of every run with every other, itself included.

    `feature` is the dataset of a layer that holds one number per image and channel, `image_mean` or
    `image_max`; `variance` the share that SVCCA keeps. `..._chance` is what the measure gives for
    layers that saw different images. One row (`SIMILARITY`) per pair; each pair appears once, the
    one that comes first in the group first.
    """
    known = [(run, layer, depth) for run in files for depth, layer in enumerate(layers[run])]
    found = alike.Moments([files[run][layer][feature] for run, layer, _ in known], seed)
    canonical = alike.Canonical(found, variance)
    rows = {
        (a, b): (
            *known[a],
            *known[b],
            found.n,
            canonical.directions(a),
            canonical.directions(b),
            alike.cka(found, a, b),
            alike.cka_debiased(found, a, b),
            alike.cka(found, a, b, shuffled=True),
            canonical.svcca(a, b),
            canonical.svcca(a, b, shuffled=True),
        )
        for a, b in found.pairs()
    }
    return pd.DataFrame([rows[pair] for pair in sorted(rows)], columns=list(SIMILARITY))


def tables(
    channels: Mapping[str, pd.DataFrame],
    descriptions: Mapping[str, Mapping],
    files: Mapping[str, h5py.File],
    feature: str,
    variance: float,
    seed: int,
) -> dict[str, pd.DataFrame]:
    """Return all tables of a group by the stem of their file.

    `channels`, `descriptions` and `files` are channels.csv, model.json and the open activations.h5
    of each run, the reference first; for the rest see `similarity`. Raises RfatlasError as
    `check_images` does.
    """
    check_images(files)
    layers = {run: list(rows_by_layer(channels[run])) for run in files}
    pairs, matching = matched(files, layers, seed)
    return {
        "runs": runs(files, descriptions),
        "fractions": fractions(channels),
        "quantities": quantities(channels),
        "matched": pairs,
        "matching": matching,
        "similarity": similarity(files, layers, feature, variance, seed),
    }


def _superiority(values: np.ndarray, others: np.ndarray) -> float:
    if not values.size or not others.size:
        return np.nan
    return stats.mannwhitneyu(values, others).statistic / (values.size * others.size)

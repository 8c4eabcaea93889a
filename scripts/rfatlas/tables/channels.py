"""Stage `channels`: one table per run, one row per channel of every layer.

The table is the join key of everything that follows: figures, report, atlas and comparisons read
it and nothing else. Each analysis leaves a table with columns `layer`, `channel` and its own, one
row per channel; `join` adds those columns without knowing what they mean. docs/columns.md explains
every column.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from rfatlas import stages
from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.statistics import circular_difference
from rfatlas.tables import counted

#: What identifies a row in every table of the workflow.
KEY = ["layer", "channel"]

#: Stages with columns whose jobs do all layers of a run: one table each.
WHOLE_RUN = [name for name in stages.with_columns() if stages.BY_NAME[name].scope == "run"]

#: `n_top_classes` looks at no more than this many top units of a channel, whatever K is.
TOP_CLASSES = 100

#: Columns that this stage makes itself, in the order of the table; those of other stages follow.
COLUMNS = (
    *KEY, "depth", "rectified", "rf_size", "rf_local_size", "rf_kind", "rf_probed", "rf_stride",
    "rf_start_y", "rf_start_x", "filter_norm", "weak_filter", "next_norm", "next_drive", "inactive",
    "inactive_reason", "activation_mean", "activation_var", "activation_max", "fraction_active",
    "class_selectivity", "preferred_class", "preferred_label", "n_top",
    "n_top_classes",
)  # fmt: skip

#: The column of each estimate of a channel's orientation, and every two of them.
ORIENTATIONS = {
    "kernel": "gabor_kernel_theta_deg",
    "gradient": "gabor_theta_deg",
    "gratings": "orientation_deg",
}
PAIRS = tuple(itertools.combinations(ORIENTATIONS, 2))

#: Columns that compare what several stages found; they come last, where their parts exist.
DERIVED = (
    "orientation_selective",
    *(f"orientation_{one}_{other}_deg" for one, other in PAIRS),
)


def next_drive(variance: np.ndarray, next_norm: np.ndarray) -> np.ndarray:
    """Return how strongly each channel of one layer drives what reads it (C,), over the layer's
    median of the channels that drive it at all.

    The standard deviation of its activation times the norm (C,) of the weights that the next
    filters have for it (see `Graph.next_norms`): a factor that is moved from a channel's own filter
    to those weights, as ReLU allows, changes nothing. Where these norms are not known (NaN) the
    standard deviation alone.
    """
    norm = np.asarray(next_norm, float)
    drive = np.sqrt(variance) * np.where(np.isfinite(norm), norm, 1)
    some = drive[drive > 0]
    return drive / np.median(some) if some.size else drive


def inactive(variance: np.ndarray, drive: np.ndarray, share: float) -> np.ndarray:
    """Name why each channel of one layer is inactive: (C,) of str, "" for an active channel,
    "constant" for one of variance (C,) 0, "weak" for one whose `next_drive` (C,) is below
    `share`."""
    return np.select([variance == 0, drive < share], ["constant", "weak"], "").astype(object)


def weak_filter(filter_norm: np.ndarray, share: float) -> pd.array:
    """Return whether the norm (C,) of each filter of one layer is below `share` of the largest, as
    Kobayashi & Shouno (2020) told inactive channels; missing where it is not known."""
    known = np.isfinite(filter_norm)
    largest = filter_norm[known].max(initial=0)
    return pd.array(np.where(known, filter_norm < share * largest, None), "boolean")


def class_selectivity(
    class_mean: np.ndarray, images_per_class: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the class selectivity of each channel of one layer, and the class it prefers.

    (mu_max - mu_rest) / (mu_max + mu_rest), where mu_max is the largest class mean of the channel's
    activation and mu_rest the mean of the other class means (Morcos et al. 2018, arXiv 1803.06959,
    eq. 1): 0 when no class drives the channel more than another, 1 when one class alone does.

    `class_mean` (n_classes, C); classes without `images_per_class` (n_classes,) are ignored. The
    selectivity (C,) is NaN with fewer than two classes, for a channel that no class drives, and
    where a class mean is negative (the index is defined for rectified activations); the preferred
    class (C,) is the first of equals, -1 where no class stands out.
    """
    seen = np.flatnonzero(images_per_class)
    channels = class_mean.shape[1]
    if seen.size == 0:
        return np.full(channels, np.nan), np.full(channels, -1)
    means = np.asarray(class_mean, float)[seen]
    best = means.argmax(axis=0)
    largest = means.max(axis=0)
    preferred = np.where(largest > means.min(axis=0), seen[best], -1)
    if seen.size < 2:
        return np.full(channels, np.nan), preferred
    others = np.where(np.arange(seen.size)[:, None] == best, 0, means).sum(axis=0)
    rest = others / (seen.size - 1)
    defined = (means.min(axis=0) >= 0) & (largest + rest > 0)
    index = np.full(channels, np.nan)
    np.divide(largest - rest, largest + rest, out=index, where=defined)
    return index, preferred


def top_classes(top_image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the top units (C,) of each channel and the distinct known classes (C,) among the first
    min(K, 100) of them.

    `top_image` (C, K) image of each top unit, at most one unit per image, -1 where fewer than K
    exist; `labels` (N,) class of each image, -1 = unknown.
    """
    exists = top_image >= 0
    first = top_image[:, :TOP_CLASSES]
    label = np.where(first >= 0, labels[np.maximum(first, 0)], -1)
    distinct = [len(np.unique(row[row >= 0])) for row in label]
    return exists.sum(axis=1), np.array(distinct, int)


def activation_table(
    activations: h5py.File,
    layers: Sequence[Mapping],
    class_names: Sequence[str],
    inactive_norm: float,
    inactive_drive: float,
) -> pd.DataFrame:
    """Return this stage's own columns (`COLUMNS`) for every channel of every layer of a run.

    `layers` are those of model.json in network order; `class_names` the name of each class, "" or
    nothing where unknown; for the rest see `weak_filter` and `inactive`.
    """
    labels = activations["output/labels"][:]
    counts = np.bincount(labels[labels >= 0])
    tables = []
    for depth, layer in enumerate(layers):
        name, channels = layer["name"], layer["channels"]
        group = activations[name]
        norm, next_norm = (np.array(layer[key], float) for key in ("filter_norm", "next_norm"))
        variance = group["var"][:]
        drive = next_drive(variance, next_norm)
        reasons = inactive(variance, drive, inactive_drive)
        n_top, n_classes = top_classes(group["top_per_image_image"][:], labels)
        selectivity, preferred = np.full(channels, np.nan), np.full(channels, -1)
        if counts.size:
            class_mean = group["class_mean"][:]
            every = np.pad(counts, (0, len(class_mean) - len(counts)))
            selectivity, preferred = class_selectivity(class_mean, every)
        size, kind, start = layer["size"], layer["rf_kind"], layer["start"]
        columns = {
            "layer": name,
            "channel": np.arange(channels),
            "depth": depth,
            "rectified": bool(layer["rectified"]),
            "rf_size": pd.array([size if kind == "exact" else None] * channels, "Int64"),
            "rf_local_size": pd.array([size] * channels, "Int64"),
            "rf_kind": kind,
            "rf_probed": " ".join(layer["probed"]),
            "rf_stride": pd.array([layer["stride"]] * channels, "Int64"),
            "rf_start_y": np.nan if start is None else start[0],
            "rf_start_x": np.nan if start is None else start[1],
            "filter_norm": norm,
            "weak_filter": weak_filter(norm, inactive_norm),
            "next_norm": next_norm,
            "next_drive": drive,
            "inactive": reasons != "",
            "inactive_reason": reasons,
            "activation_mean": group["mean"][:],
            "activation_var": variance,
            "activation_max": group["max"][:],
            "fraction_active": group["fraction_active"][:],
            # Without a ReLU a mean that happens to be positive says nothing about the sum below it.
            "class_selectivity": selectivity if layer["rectified"] else np.nan,
            "preferred_class": [
                class_names[label] if 0 <= label < len(class_names) else "" for label in preferred
            ],
            "preferred_label": pd.Series(preferred, dtype="Int64").where(preferred >= 0),
            "n_top": n_top,
            "n_top_classes": pd.array(n_classes if counts.size else [pd.NA] * channels, "Int64"),
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def join(
    table: pd.DataFrame, stage: str, paths: Iterable[str | Path], first: int | None = None
) -> pd.DataFrame:
    """Return `table` with the columns of a stage's tables: `<stage>/<layer>.csv` of each layer, or
    one `<stage>.csv` of all.

    With `first` the stage looked at channels below that number only, and its columns may stay empty
    in the other rows, as in those of layers without a file.

    Raises RfatlasError if the rows of the stage are not those expected; ValueError, as pandas
    words it, for a repeated row and for a column that is already there.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        return table
    whole = stage in WHOLE_RUN
    # A column that is empty throughout one layer reads as float there; concat keeps the rest.
    added = pd.concat(map(store.read_table, paths), ignore_index=True)
    layers = table["layer"] if whole else [path.stem for path in paths]
    known = table[table["layer"].isin(layers)]
    expected = known if first is None else known[known["channel"] < first]
    mine, needed, theirs = (
        pd.MultiIndex.from_frame(rows[KEY]) for rows in (known, expected, added)
    )
    for missing in needed.difference(theirs, sort=False)[:1]:
        raise RfatlasError(f"stage {stage!r}: no row for layer {missing[0]!r} channel {missing[1]}")
    for extra in theirs.difference(mine, sort=False)[:1]:
        raise RfatlasError(
            f"stage {stage!r}: a row for layer {extra[0]!r} channel {extra[1]}, which is not "
            "analysed"
        )
    return table.merge(added, on=KEY, how="left", validate="one_to_one", suffixes=(None, None))


def derived(table: pd.DataFrame, orientation_osi: float) -> pd.DataFrame:
    """Return the columns `DERIVED` of a joined table, as far as their parts are there.

    A channel is orientation-selective if it is tuned for luminance or for colour
    (`counted.tuned_for`); whether one that no grating drives is, is unknown. The others are the
    distances of two estimates of the same channel's orientation, 0 to 90 degrees.
    """
    columns = {}
    if tuned := counted.tuned_for(table, orientation_osi):
        selective = pd.Series(np.any(list(tuned.values()), 0), table.index, dtype="boolean")
        columns["orientation_selective"] = selective.where(counted.orientation_known(table))
    for one, other in PAIRS:
        first, second = ORIENTATIONS[one], ORIENTATIONS[other]
        if {first, second} <= set(table):
            columns[f"orientation_{one}_{other}_deg"] = circular_difference(
                table[first].to_numpy(float), table[second].to_numpy(float)
            )
    return pd.DataFrame(columns, index=table.index)


def build(
    activations: str | Path,
    description: str | Path,
    images: str | Path,
    layers: Iterable[str],
    tables: Iterable[str | Path],
    inactive_norm: float,
    inactive_drive: float,
    orientation_osi: float,
    first: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Return the whole table of a run from its files.

    `activations`, `description` and `images` are the paths of activations.h5, model.json and the
    packed images (for the names of the classes), `layers` the names of those that are analysed.
    `tables` are paths `.../<stage>/<layer>.csv`, or `.../<stage>.csv` of a stage whose jobs do
    whole runs; the columns follow in their order. `first` maps stages to how many channels of each
    layer they looked at: their columns are empty for the others. For the rest see `weak_filter`,
    `inactive` and `derived`. Raises RfatlasError as `join` does.
    """
    wanted = set(layers)
    described = json.loads(Path(description).read_text(encoding="utf-8"))["layers"]
    with store.open(images, "images") as file:
        class_names = [str(name) for name in file.attrs["class_names"]]
    with store.open(activations, "activations") as file:
        table = activation_table(
            file,
            [layer for layer in described if layer["name"] in wanted],
            class_names,
            inactive_norm,
            inactive_drive,
        )
    by_stage: dict[str, list[Path]] = {}
    for path in map(Path, tables):
        # A layer may have the name of a stage.
        whole = path.parent == Path(activations).parent
        stage = path.stem if whole else path.parent.name
        by_stage.setdefault(stage, []).append(path)
    for stage, paths in by_stage.items():
        table = join(table, stage, paths, (first or {}).get(stage))
    return pd.concat([table, derived(table, orientation_osi)], axis=1)

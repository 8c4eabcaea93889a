"""Stage `orientation`: what the estimates of orientation and frequency say of whole layers.

Do kernel, mean gradient and gratings agree on a channel's orientation (`agreement`)? How many
channels are tuned, by several thresholds, and how many are in the random twin (`selective`)? How do
the layers compare with the primary visual cortex of macaques (`histograms`, `medians`,
`frequencies`)? Everything is counted from channels.csv; published values for macaques, with
source and certainty, are in `resources/v1_reference.csv`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rfatlas.statistics import by_layer, circular_correlation, circular_difference, rows_by_layer
from rfatlas.tables import counted
from rfatlas.tables.channels import ORIENTATIONS, PAIRS
from rfatlas.tables.counted import framed, quartiles, share

#: Two orientations agree if they are at most this many degrees apart; by chance 11 % do.
CLOSE = 10

#: The layer in rows about macaques.
MACAQUE = "macaque V1"

#: Edges of the histograms, those of the published ones as far as these reach.
_CYCLES = (0, *(10 ** np.arange(-1.48, 0.45, 0.24)).round(4).tolist(), np.inf)
EDGES = {
    "circular_variance": np.linspace(0, 1, 11).round(9),
    "bandwidth_deg": np.arange(0, 91, 7.5),
    "sf_cpd": np.array([0, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8, 11.2, 16, np.inf]),
    "sf_bandwidth_oct": np.array([*np.arange(0, 2.7, 0.2).round(9), np.inf]),
    "gabor_nx": np.array(_CYCLES),
    "gabor_ny": np.array(_CYCLES),
    "f1_f0": np.array([*np.arange(0, 2.25, 0.1).round(9), np.inf]),
}

AGREEMENT = (
    "layer", "depth", "first", "second", "channels", "n", "median_deg", "p90_deg",
    "share_within_10_deg", "circular_correlation",
)  # fmt: skip
SELECTIVE = (
    "layer", "depth", "osi_threshold", "rule", "channels", "responsive", "selective",
    *counted.PROPORTION, "twin", "twin_responsive", "twin_selective", "twin_fraction", "twin_lo",
    "twin_hi", *counted.DIFFERENCE,
)  # fmt: skip
HISTOGRAMS = ("layer", "depth", "quantity", "low", "high", "count", "n", "fraction")
MEDIANS = (
    "layer", "depth", "quantity", "n", "q25", "median", "q75", "twin_n", "twin_median",
    "macaque_median", "macaque_n", "certainty", "source",
)  # fmt: skip
FREQUENCIES = (
    "layer", "depth", "estimate", "n", "n_aliased", "median_cpp", "pixels_per_degree", "stated",
    "q25_cpd", "median_cpd", "q75_cpd", "macaque_median_cpd", "pixels_per_degree_of_macaque",
)  # fmt: skip


def selects(table: pd.DataFrame, threshold: float) -> np.ndarray:
    """Return which channels are orientation-selective: `osi` at least `threshold` and a bandwidth.

    A curve without a bandwidth never falls to 1/sqrt(2) of its peak, whatever its index.
    """
    return ((table["osi"] >= threshold) & table["bandwidth_deg"].notna()).to_numpy()


def values(
    table: pd.DataFrame, quantity: str, gabor_r2: float, pixels_per_degree: float
) -> np.ndarray:
    """Return the finite values of one of `EDGES` over the channels of `table`; maybe none.

    Gabor parameters count where the fit explains at least the share `gabor_r2` of the field's
    variance. `sf_cpd` is the frequency of the best grating in cycles per degree, or the Gabor's
    where there were no gratings.
    """
    if quantity == "sf_cpd":
        estimates = frequency(table, gabor_r2)
        return pixels_per_degree * next(iter(estimates.values()), np.zeros(0))
    if quantity not in table:
        return np.zeros(0)
    found = table[quantity].to_numpy(float)
    if quantity.startswith("gabor_"):
        found = found[(table["gabor_r2"] >= gabor_r2).to_numpy()]
    return found[np.isfinite(found)]


def frequency(table: pd.DataFrame, gabor_r2: float) -> dict[str, np.ndarray]:
    """Return the preferred frequencies of channels in cycles per pixel, by what estimated them.

    `gratings` and `gabor`, in this order, as far as the stages were on; finite values only, those
    of Gabors where the fit explains at least the share `gabor_r2`.
    """
    estimates = {}
    if "sf_cpp" in table:
        estimates["gratings"] = table["sf_cpp"].to_numpy(float)
    if "gabor_frequency" in table:
        good = table["gabor_r2"] >= gabor_r2
        estimates["gabor"] = table["gabor_frequency"].where(good).to_numpy(float)
    return {name: found[np.isfinite(found)] for name, found in estimates.items()}


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Compare each two estimates of orientation, over the channels of a layer that have both.

    Returns one row (`AGREEMENT`) per layer, pair and set of channels: `all`, and those that are
    `selective` by `orientation_selective` where the table has it, since a channel without tuning
    has no orientation to agree on. Differences are circular, 0 to 90 degrees, with their median and
    90th percentile; unrelated orientations have median 45 and 11 % within 10 degrees.
    """
    rows = []
    for layer, depth, members in by_layer(table):
        chosen = {"all": np.ones(len(members), bool)}
        if "orientation_selective" in members:
            chosen["selective"] = counted.truth(members["orientation_selective"]) == 1
        for first, second in PAIRS:
            if not {ORIENTATIONS[first], ORIENTATIONS[second]} <= set(table):
                continue
            a, b = (members[ORIENTATIONS[name]].to_numpy(float) for name in (first, second))
            for name, subset in chosen.items():
                both = subset & np.isfinite(a) & np.isfinite(b)
                apart = circular_difference(a[both], b[both])
                row = [layer, depth, first, second, name, apart.size, np.nan, np.nan, np.nan]
                if apart.size:
                    row[-3:] = *np.quantile(apart, (0.5, 0.9)), np.mean(apart <= CLOSE)
                rows.append([*row, circular_correlation(a[both], b[both])])
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def selective(
    table: pd.DataFrame,
    thresholds: Sequence[float],
    rule: float,
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> pd.DataFrame:
    """Count the orientation-selective channels of each layer at several thresholds of `osi`.

    Returns one row (`SELECTIVE`) per layer and threshold, that of `rule` (by which the column
    `orientation_selective` goes) among them and marked; none without the columns of the stage
    `gratings`. Fractions are of the responsive channels (those with an `osi`), with 95 % Wilson
    intervals; `difference` is that from the twin, with Newcombe's interval. The twin's columns are
    empty where there is no twin or it lacks the layer.
    """
    rows = []
    twin_layers = rows_by_layer(twin) if twin is not None and "osi" in twin else {}
    for layer, depth, members in by_layer(table) if "osi" in table else ():
        responsive = int(members["osi"].notna().sum())
        other = twin_layers.get(layer)
        for threshold in sorted({*thresholds, rule}):
            count = int(selects(members, threshold).sum())
            others = None
            if other is not None:
                others = int(selects(other, threshold).sum()), int(other["osi"].notna().sum())
            rows.append(
                (
                    *(layer, depth, threshold, threshold == rule, len(members), responsive, count),
                    *counted.proportion(count, responsive),
                    *counted.against(count, responsive, twin_name, others),
                )
            )
    return framed(rows, SELECTIVE, ("twin_responsive", "twin_selective"))


def histograms(
    table: pd.DataFrame, reference: pd.DataFrame, gabor_r2: float, pixels_per_degree: float
) -> pd.DataFrame:
    """Count the channels of each layer in the bins `EDGES`, with the published counts of macaques.

    Returns one row (`HISTOGRAMS`) per layer, quantity and bin `low` <= value < `high` (the last bin
    includes its end), and the same of `MACAQUE`, without depth and in the published bins. `n`
    values are in the histogram, `fraction` of them in the bin. Quantities of stages that were off
    have no rows.
    """
    rows = []
    for quantity, edges in EDGES.items():
        for layer, depth, members in by_layer(table):
            found = values(members, quantity, gabor_r2, pixels_per_degree)
            if not _measured(table, quantity):
                continue
            counts, _ = np.histogram(found, edges)
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                part = share(count, found.size)
                rows.append((layer, depth, quantity, low, high, count, found.size, part))
        published = _published(reference, quantity, "count")
        total = published["value"].sum()
        for low, high, count in published[["low", "high", "value"]].itertuples(index=False):
            part = share(count, total)
            rows.append((MACAQUE, pd.NA, quantity, low, high, int(count), int(total), part))
    return framed(rows, HISTOGRAMS, ["depth"])


def medians(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    gabor_r2: float,
    pixels_per_degree: float,
    twin: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return median and quartiles of the quantities `EDGES` per layer beside the macaque's median.

    One row (`MEDIANS`) per layer and measured quantity, with how sure the published number is.
    """
    twin_layers = {} if twin is None else rows_by_layer(twin)
    rows = []
    for quantity in EDGES:
        if not _measured(table, quantity):
            continue
        published = _published(reference, quantity, "median")
        known = (np.nan, pd.NA, "", "")
        if len(published):
            known = tuple(published.iloc[0][["value", "n", "certainty", "source"]])
        for layer, depth, members in by_layer(table):
            found = values(members, quantity, gabor_r2, pixels_per_degree)
            others, middle = pd.NA, np.nan
            if layer in twin_layers:
                other = values(twin_layers[layer], quantity, gabor_r2, pixels_per_degree)
                others, middle = other.size, quartiles(other)[1]
            row = (layer, depth, quantity, found.size, *quartiles(found), others, middle, *known)
            rows.append(row)
    return framed(rows, MEDIANS, ("twin_n", "macaque_n")).astype({"macaque_median": float})


def frequencies(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    gabor_r2: float,
    pixels_per_degree: float,
    sweep: Sequence[float],
) -> pd.DataFrame:
    """Return the preferred frequencies of layers in cycles per degree, for several scales.

    A network knows pixels only; how many of them make a degree of visual angle is an assumption
    (`pixels_per_degree`, marked `stated`), and the sweep shows what follows from others.
    `pixels_per_degree_of_macaque` is the scale on which the layer's median would be the macaque's.
    One row (`FREQUENCIES`) per layer, estimate (`gratings`, `gabor`) and scale; `n_aliased`
    gratings had a frequency above the Nyquist frequency of the layer's stride.
    """
    macaque = _published(reference, "sf_cpd", "median")["value"].iloc[0]
    rows = []
    for layer, depth, members in by_layer(table):
        for estimate, found in frequency(members, gabor_r2).items():
            aliased = pd.NA
            if estimate == "gratings" and "sf_aliased" in members:
                aliased = int(np.nansum(counted.truth(members["sf_aliased"])))
            low, middle, high = quartiles(found)
            for scale in sorted({*sweep, pixels_per_degree}):
                head = (layer, depth, estimate, found.size, aliased, middle)
                head += (scale, scale == pixels_per_degree)
                own = (scale * low, scale * middle, scale * high)
                rows.append((*head, *own, macaque, macaque / middle))
    return framed(rows, FREQUENCIES, ["n_aliased"])


def tables(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    settings: Mapping,
    orientation_osi: float,
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> dict[str, pd.DataFrame]:
    """Return all tables of the stage by the stem of their file.

    `settings` is the config's section `orientation`, `orientation_osi` the threshold by which the
    column `orientation_selective` goes.
    """
    r2, scale = settings["gabor_r2"], settings["pixels_per_degree"]
    sweep = settings["pixels_per_degree_sweep"]
    return {
        "agreement": agreement(table),
        "selective": selective(table, settings["thresholds"], orientation_osi, twin, twin_name),
        "v1": histograms(table, reference, r2, scale),
        "v1_medians": medians(table, reference, r2, scale, twin),
        "frequency": frequencies(table, reference, r2, scale, sweep),
    }


def _published(reference: pd.DataFrame, quantity: str, statistic: str) -> pd.DataFrame:
    return reference[(reference["quantity"] == quantity) & (reference["statistic"] == statistic)]


def _measured(table: pd.DataFrame, quantity: str) -> bool:
    if quantity == "sf_cpd":
        return "sf_cpp" in table or "gabor_frequency" in table
    return quantity in table

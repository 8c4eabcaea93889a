"""Stage `v1`: the report card, how much the channels of each layer are like neurons of macaque V1.

The properties are the 22 of Brain-Score's battery (Marques, Schrimpf & DiCarlo 2021), as far as
they are defined for a network that has neither time nor spikes, and the size of the Gabors in
cycles. Each is compared with what is published of macaques (`resources/v1_reference.csv`, with
source and certainty): where a distribution is known by the Kolmogorov-Smirnov distance, where only
a median is by that. Everything is computed from channels.csv.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from rfatlas.statistics import by_layer, rows_by_layer
from rfatlas.tables.counted import framed, quartiles, share

#: The layer in rows about macaques.
MACAQUE = "macaque V1"

#: Resamplings of a bootstrap.
SAMPLES = 1000

#: Median of the largest responses to gratings, and of the spontaneous rates, of macaque V1
#: (spikes/s; the constants of Brain-Score's battery). A layer's responses are put on this scale.
MEDIAN_RATE, SPONTANEOUS_RATE = 33.8, 0.82

#: Sizes count in channels whose surround takes away more than this share (Cavanaugh et al. 2002).
SUPPRESSED = 0.1

#: Bins of what is 0 or 1, of shares, and of others.
_EITHER = (-0.5, 0.5, 1.5)
_SHARES = np.linspace(0, 1, 11).round(9)
_CYCLES = (0, *(10 ** np.arange(-1.48, 0.45, 0.24)).round(4).tolist(), np.inf)
_FREQUENCIES = (0, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5.6, 8, 11.2, 16, np.inf)
_OCTAVES = (*np.arange(0, 2.7, 0.2).round(9).tolist(), np.inf)
_DEGREES = (0, *(2.0 ** np.arange(-4, 5)).tolist(), np.inf)
_RATES = (0, *(10 ** np.arange(0, 3.1, 1 / 3)).round(3).tolist(), np.inf)
_TINY = (0, *(10 ** np.arange(-3, 0.1, 0.2)).round(6).tolist(), np.inf)
_RATIOS = (0, *(10 ** np.arange(-2, 2.1, 0.25)).round(6).tolist())
_F1_F0 = (*np.arange(0, 2.25, 0.1).round(9).tolist(), np.inf)
_MODULATION = (-1, *np.arange(-0.45, 0.46, 0.06).round(9).tolist(), 1)
_ABS_MODULATION = (0, *np.arange(0.03, 0.46, 0.06).round(9).tolist(), 1)


def _itself(scale: float, values: pd.Series, *others: pd.Series) -> pd.Series:
    return values


def _defined(scale: float, osi: pd.Series, values: pd.Series) -> pd.Series:
    """1 where a column has a value, 0 where it has none, of channels that respond to gratings."""
    return values.notna().astype(float).where(osi.notna())


def _orientation(scale: float, orientation: pd.Series, bandwidth: pd.Series) -> pd.Series:
    """Orientations from -22.5 to 157.5 degrees, of channels that are tuned."""
    return ((orientation + 22.5) % 180 - 22.5).where(bandwidth.notna())


def _orthogonal(scale: float, osi: pd.Series) -> pd.Series:
    """Response at 90 degrees from the peak over that at the peak."""
    return (1 - osi) / (1 + osi)


def _frequency(scale: float, cycles: pd.Series, *others: pd.Series) -> pd.Series:
    return scale * cycles


def _size(scale: float, pixels: pd.Series, suppression: pd.Series) -> pd.Series:
    return (pixels / scale).where(suppression > SUPPRESSED)


def _rate(scale: float, gratings: pd.Series, response: pd.Series | None = None) -> pd.Series:
    """Responses in spikes/s, by the line that takes the layer's median response to its best
    gratings to that of macaques, and no response to the spontaneous rate."""
    # A layer that answers to no grating has no scale.
    slope = (MEDIAN_RATE - SPONTANEOUS_RATE) / gratings.median()
    return SPONTANEOUS_RATE + slope * (gratings if response is None else response)


@dataclass(frozen=True)
class Property:
    """A property of a channel."""

    name: str
    title: str
    #: Edges of the histograms, those of the published one as far as they reach.
    edges: Sequence[float]
    #: The columns that it follows from; none for the column of its name.
    columns: tuple[str, ...] = ()
    #: Takes the pixels per degree and the columns (C,) and returns the values (C,), NaN where they
    #: are undefined.
    rule: Callable[..., pd.Series] = _itself
    #: Whether the values change with the pixels per degree.
    scaled: bool = False
    #: Whether it is one of the 22 of the battery, which make the score.
    battery: bool = True
    #: The published quantity that it is compared with, if not of its own name.
    like: str = ""
    #: As in `_BY_GROUP`.
    group: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that a table must have."""
        return self.columns or (self.name,)

    def values(self, table: pd.DataFrame, scale: float) -> np.ndarray:
        """Return the values (C,) of a table of channels, with `scale` pixels per degree."""
        return self.rule(scale, *(table[name].astype(float) for name in self.needs)).to_numpy()


_BY_GROUP = {
    "orientation": (
        Property(
            "orientation_deg",
            "preferred orientation",
            (-22.5, 22.5, 67.5, 112.5, 157.5),
            ("orientation_deg", "bandwidth_deg"),
            _orientation,
        ),
        Property("circular_variance", "circular variance", _SHARES),
        Property(
            "orientation_tuned",
            "tuned to orientation",
            _EITHER,
            ("osi", "bandwidth_deg"),
            _defined,
        ),
        Property("bandwidth_deg", "half-bandwidth (°)", np.arange(0, 91, 7.5)),
        Property("orthogonal_ratio", "orthogonal over preferred", _SHARES, ("osi",), _orthogonal),
        Property(
            "cv_bandwidth_ratio",
            "circular variance over bandwidth",
            _TINY,
            ("circular_variance", "bandwidth_deg"),
            lambda scale, variance, bandwidth: variance / bandwidth,
        ),
        Property(
            "orthogonal_ratio_minus_cv",
            "orthogonal ratio minus circular variance",
            np.linspace(-1, 1, 21).round(9),
            ("osi", "circular_variance"),
            lambda scale, osi, variance: _orthogonal(scale, osi) - variance,
        ),
    ),
    "spatial frequency": (
        Property("sf_cpd", "preferred frequency", _FREQUENCIES, ("sf_cpp",), _frequency, True),
        Property("sf_tuned", "tuned to frequency", _EITHER, ("osi", "sf_bandwidth_oct"), _defined),
        Property("sf_bandwidth_oct", "frequency bandwidth", _OCTAVES),
    ),
    "response selectivity": (
        Property("texture_selectivity", "selectivity for textures", _SHARES),
        Property("texture_sparseness", "sparseness over textures", _SHARES),
        Property("texture_variance_ratio", "variance ratio of textures", _RATIOS),
        Property("f1_f0", "F1/F0", _F1_F0),
    ),
    "field size": tuple(
        Property(
            f"{name}_deg",
            title,
            _DEGREES,
            (f"size_{name}_px", "suppression_index"),
            _size,
            scaled=True,
        )
        for name, title in (("summation", "summation field"), ("surround", "surround diameter"))
    ),
    "surround modulation": (
        Property("suppression_index", "surround suppression", np.linspace(0, 2, 11).round(9)),
    ),
    "texture modulation": (
        Property("texture_modulation", "texture modulation", _MODULATION),
        Property("texture_abs_modulation", "texture modulation, absolute", _ABS_MODULATION),
    ),
    "response magnitude": (
        Property("grating_rate", "largest response", _RATES, ("grating_response",), _rate),
        *(
            Property(
                f"{name}_rate",
                f"largest response to {title}",
                _RATES,
                ("grating_response", f"{name}_max"),
                _rate,
            )
            for name, title in (("texture", "textures"), ("noise", "noise"))
        ),
    ),
    "Gabors": (
        Property(
            "gabor_sf_cpd",
            "frequency of the Gabor",
            _FREQUENCIES,
            ("gabor_frequency", "gabor_r2"),
            _frequency,
            scaled=True,
            battery=False,
            like="sf_cpd",
        ),
        *(
            Property(
                name,
                f"size of the Gabor {side}",
                _CYCLES,
                (name, "gabor_r2"),
                battery=False,
            )
            for name, side in (("gabor_nx", "across its bars"), ("gabor_ny", "along its bars"))
        ),
    ),
}

PROPERTIES = tuple(
    replace(each, group=group) for group, those in _BY_GROUP.items() for each in those
)

#: Published samples of a quantity that say how alike two studies of V1 are.
PAIRS = {
    "orientation_deg": ("orientation_deg", "orientation_deg_part"),
    "sf_cpd": ("sf_cpd_foveal", "sf_cpd_parafoveal"),
    "sf_bandwidth_oct": ("sf_bandwidth_oct", "sf_bandwidth_oct_schiller"),
}

HISTOGRAMS = ("layer", "depth", "property", "low", "high", "count", "n", "fraction")
CARD = (
    "layer", "depth", "property", "title", "group", "battery", "n", "q25", "median", "q75",
    "twin_n", "twin_median", "macaque_median", "macaque_n", "ks", "ks_lo", "ks_hi", "twin_ks",
    "gain", "gain_lo", "gain_hi", "ceiling", "study_ceiling", "similarity", "twin_similarity",
    "reason", "certainty", "source",
)  # fmt: skip
SCORES = (
    "layer", "depth", "pixels_per_degree", "stated", "channels", "properties", "score", "lo", "hi",
    "twin", "twin_score", "difference", "difference_lo", "difference_hi",
)  # fmt: skip
SCALES = (
    "layer", "depth", "property", "pixels_per_degree", "stated", "n", "q25", "median", "q75",
    "ks", "twin_ks", "macaque_median", "pixels_per_degree_of_macaque",
)  # fmt: skip


# ---- what is published


@dataclass(frozen=True)
class Published:
    """A distribution of macaques at the edges (E,) of its bins: the share `below` each, of `n`
    cells (None where only shares are known)."""

    edges: np.ndarray
    below: np.ndarray
    n: int | None

    @property
    def last(self) -> float:
        """The last edge that is finite."""
        return self.edges[np.isfinite(self.edges)][-1]

    def at(self, values: np.ndarray) -> np.ndarray:
        """Return the share below values up to the last edge, by straight lines between edges."""
        finite = np.isfinite(self.edges)
        return np.interp(values, self.edges[finite], self.below[finite])


def published(reference: pd.DataFrame, name: str) -> Published | None:
    """Return the published distribution of a quantity, None where none is known."""
    rows = reference[
        (reference["quantity"] == name) & reference["statistic"].isin(["count", "share"])
    ]
    if rows.empty:
        return None
    edges = np.array([*rows["low"], rows["high"].iloc[-1]], float)
    total = rows["value"].sum()
    known = rows["statistic"].iloc[0] == "count"
    below = np.concatenate([[0], rows["value"].cumsum() / total])
    return Published(edges, below, int(total) if known else None)


def study_ceiling(reference: pd.DataFrame, name: str) -> float:
    """Return 1 - the KS distance between two published samples of a quantity, NaN where there are
    not two. Bins that differ are split as if their cells lay evenly in them; behind the last edge
    that both have nothing is compared."""
    if name not in PAIRS:
        return np.nan
    one, two = (published(reference, sample) for sample in PAIRS[name])
    edges = np.union1d(one.edges, two.edges)
    edges = edges[edges <= min(one.last, two.last)]
    return float(1 - np.abs(one.at(edges) - two.at(edges)).max())


# ---- distances


def below(values: np.ndarray, edges: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the share of values (C,) below each edge, NaN left out: (E,), or (S, E) for counts
    `weights` (S, C) of each value in resamplings; NaN of nothing."""
    known = np.isfinite(values)
    weights = np.ones((1, len(values))) if weights is None else weights
    smaller = (values[known, None] < edges).astype(float)
    total = weights[:, known].sum(1, keepdims=True)
    found = np.full((len(weights), len(edges)), np.nan)
    np.divide(weights[:, known] @ smaller, total, out=found, where=total > 0)
    return found[0] if len(weights) == 1 else found


def ks(values: np.ndarray, known: Published, weights: np.ndarray | None = None) -> Any:
    """Return the Kolmogorov-Smirnov distance of values (C,) from a published distribution, at the
    edges of its bins; (S,) of resamplings. 1 where no channel has a value: V1's neurons do."""
    distance = np.abs(below(values, known.edges, weights) - known.below).max(-1)
    return np.where(np.isnan(distance), 1.0, distance)


def ceiling(known: Published, n: int) -> float:
    """Return the mean of 1 - KS between a sample of n neurons of the published distribution and
    another as large as the published one: what a layer that is V1 would reach with n channels."""
    if n == 0:
        return 1.0
    random = np.random.default_rng(0)
    shares = np.diff(known.below)
    mine = random.multinomial(n, shares, SAMPLES) / n
    theirs = random.multinomial(known.n, shares, SAMPLES) / known.n if known.n else shares
    return float(1 - np.abs((mine - theirs).cumsum(1)).max(1).mean())


def resamplings(count: int, seed: int) -> np.ndarray:
    """Return how often each of `count` channels is drawn in each of SAMPLES resamplings."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), SAMPLES).astype(float)


def interval(found: float, drawn: np.ndarray, low: float = 0) -> tuple[float, float]:
    """Return the basic 95 % bootstrap interval of a number from `low` to 1.

    A distance grows by resampling; the basic interval takes that off, which percentiles would not
    (Davison & Hinkley 1997, section 5.2).
    """
    ends = 2 * found - np.quantile(drawn, (0.975, 0.025))
    return tuple(np.clip(ends, low, 1).tolist())


# ---- one layer


@dataclass(frozen=True)
class Match:
    """How one property of a layer matches V1: its KS distance, that of the resamplings (S,), and
    the ceiling."""

    ks: float
    drawn: np.ndarray
    ceiling: float

    def similarity(self, distance: Any) -> Any:
        """Return the similarities, at most 1, of distances as shares of the ceiling."""
        return np.minimum(1, (1 - distance) / self.ceiling)


class Judge:
    """Compares layers with what is published; keeps what does not depend on the scale."""

    def __init__(self, reference: pd.DataFrame, gabor_r2: float):
        self._gabor_r2 = gabor_r2
        like = {each.name: each.like or each.name for each in PROPERTIES}
        self.rows = {name: reference[reference["quantity"] == like[name]] for name in like}
        self.known = {name: published(reference, like[name]) for name in like}
        self.studies = {name: study_ceiling(reference, like[name]) for name in like}
        self._sampling = cache(lambda name, n: ceiling(self.known[name], n))

    def values(self, each: Property, table: pd.DataFrame, scale: float) -> np.ndarray | None:
        """Return the values (C,) of a property, None where a stage that it needs was off.

        Gabor parameters count where the fit explains enough of the field's variance.
        """
        if not set(each.needs) <= set(table):
            return None
        found = each.values(table, scale)
        if "gabor_r2" in each.needs:
            found = np.where(table["gabor_r2"] >= self._gabor_r2, found, np.nan)
        return np.where(np.isfinite(found), found, np.nan)

    def match(self, each: Property, values: np.ndarray, weights: np.ndarray) -> Match | None:
        """Return how values (C,) of a property match V1; None where no distribution is known."""
        known = self.known[each.name]
        if known is None:
            return None
        top = self._sampling(each.name, int(np.isfinite(values).sum()))
        if np.isfinite(self.studies[each.name]):
            top = min(top, self.studies[each.name])
        return Match(float(ks(values, known)), ks(values, known, weights), top)

    def median(self, name: str) -> pd.Series | None:
        """Return the row of the published median, None where it is not known."""
        rows = self.rows[name]
        rows = rows[rows["statistic"] == "median"]
        return None if rows.empty else rows.iloc[0]


def _scored(judge: Judge, *tables: pd.DataFrame) -> list[Property]:
    """The properties of the battery that all of these tables can be compared with V1 by."""
    return [
        each
        for each in PROPERTIES
        if each.battery
        and judge.known[each.name] is not None
        and all(set(each.needs) <= set(table) for table in tables)
    ]


def _layers(
    table: pd.DataFrame, twin: pd.DataFrame | None
) -> Iterator[tuple[str, int, pd.DataFrame, pd.DataFrame | None, np.ndarray, np.ndarray | None]]:
    """Name, depth, rows, the twin's rows, and resamplings of both, of every layer."""
    others = {} if twin is None else rows_by_layer(twin)
    for layer, depth, rows in by_layer(table):
        other = others.get(layer)
        weights = None if other is None else resamplings(len(other), 1)
        yield layer, depth, rows, other, resamplings(len(rows), 0), weights


# ---- the tables


def histograms(table: pd.DataFrame, judge: Judge, scale: float) -> pd.DataFrame:
    """Count the channels of each layer in the bins of each property, with the published counts.

    Returns one row (`HISTOGRAMS`) per layer, property and bin `low` <= value < `high` (the last bin
    includes its end), and the same of `MACAQUE`, without depth and in the published bins. Of shares
    without counts `count` and `n` are empty. Properties of stages that were off have no rows.
    """
    rows = []
    for each in PROPERTIES:
        for layer, depth, members in by_layer(table):
            found = judge.values(each, members, scale)
            if found is None:
                continue
            counts, edges = np.histogram(found[np.isfinite(found)], each.edges)
            total = np.isfinite(found).sum()
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                rows.append((layer, depth, each.name, low, high, count, total, share(count, total)))
        if (known := judge.known[each.name]) is not None:
            edges, shares = known.edges, np.diff(known.below)
            for low, high, part in zip(edges[:-1], edges[1:], shares, strict=True):
                count = pd.NA if known.n is None else round(part * known.n)
                total = pd.NA if known.n is None else known.n
                rows.append((MACAQUE, pd.NA, each.name, low, high, count, total, part))
    return framed(rows, HISTOGRAMS, ("depth", "count", "n"))


def card(
    table: pd.DataFrame, judge: Judge, scale: float, twin: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Compare every property of each layer with macaque V1, and with the random twin.

    One row (`CARD`) per layer and property. `ks` is the distance, with its bootstrap interval over
    channels; `gain` how much smaller it is than the twin's. `reason` says why there is no distance:
    `stage_off`, `not_published`, or `median_only`; `no_channel` where no channel has a value, which
    counts as a distance of 1.
    """
    rows = []
    for layer, depth, members, other, weights, other_weights in _layers(table, twin):
        for each in PROPERTIES:
            row: dict[str, Any] = {"layer": layer, "depth": depth, "property": each.name}
            row |= {"title": each.title, "group": each.group, "battery": each.battery}
            row |= _against(each, members, judge, scale, weights)
            if other is not None:
                its = _against(each, other, judge, scale, other_weights)
                row |= {f"twin_{key}": its[key] for key in ("n", "median", "ks", "similarity")}
                if "drawn" in row and "drawn" in its:
                    row["gain"] = its["ks"] - row["ks"]
                    both = interval(row["gain"], its["drawn"] - row["drawn"], -1)
                    row["gain_lo"], row["gain_hi"] = both
            rows.append(row)
    found = pd.DataFrame(rows).reindex(columns=list(CARD))
    whole = ("n", "twin_n", "macaque_n")
    return found.astype(dict.fromkeys(whole, "Int64")).fillna({"certainty": "", "source": ""})


def _against(
    each: Property, members: pd.DataFrame, judge: Judge, scale: float, weights: np.ndarray
) -> dict[str, Any]:
    """What a row of `card` says of one layer and property; `drawn` are its resampled distances."""
    row: dict[str, Any] = {"reason": "stage_off", "n": pd.NA, "median": np.nan}
    row |= {"ks": np.nan, "similarity": np.nan}
    if (middle := judge.median(each.name)) is not None:
        row |= {"macaque_median": middle["value"], "macaque_n": middle["n"]}
        row |= {"certainty": middle["certainty"], "source": middle["source"]}
    rows = judge.rows[each.name]
    if middle is None and len(rows):
        row |= dict(rows.iloc[0][["certainty", "source"]]) | {"macaque_n": rows["n"].iloc[0]}
    values = judge.values(each, members, scale)
    if values is None:
        return row
    known = values[np.isfinite(values)]
    row |= {"n": known.size}
    if each.edges is _EITHER:
        row["median"] = share(known.sum(), known.size)
        if (theirs := judge.known[each.name]) is not None:
            row["macaque_median"] = 1 - theirs.below[1]
    else:
        row |= dict(zip(("q25", "median", "q75"), quartiles(known), strict=True))
    found = judge.match(each, values, weights)
    if found is None:
        return row | {"reason": "not_published" if middle is None else "median_only"}
    low, high = interval(found.ks, found.drawn)
    return row | {
        "reason": "" if known.size else "no_channel",
        "ks": found.ks,
        "ks_lo": low,
        "ks_hi": high,
        "ceiling": found.ceiling,
        "study_ceiling": judge.studies[each.name],
        "similarity": found.similarity(found.ks),
        "drawn": found.drawn,
    }


def scores(
    table: pd.DataFrame,
    judge: Judge,
    scale: float,
    sweep: Sequence[float],
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> pd.DataFrame:
    """Score each layer: the mean over properties of (1 - KS) as a share of its ceiling.

    One row (`SCORES`) per layer and scale in pixels per degree, that of `scale` marked `stated`.
    The properties are those of the battery whose distribution is published and whose stages were
    on, also for the twin; the same for all layers. Intervals are bootstraps over channels, all
    properties of a channel drawn together. No rows without such a property.
    """
    judged = _scored(judge, table, *([] if twin is None else [twin]))
    scales = sorted({*sweep, scale}) if judged else []
    rows = []
    for layer, depth, members, other, weights, other_weights in _layers(table, twin):
        mine = _means(judged, members, judge, scales, weights)
        theirs = [None] * len(scales)
        if other is not None:
            theirs = _means(judged, other, judge, scales, other_weights)
        for pixels, (own, drawn), its in zip(scales, mine, theirs, strict=True):
            row = (layer, depth, pixels, pixels == scale, len(members), len(judged))
            row += (own, *interval(own, drawn))
            if its is None:
                rows.append((*row, "", *[np.nan] * 4))
                continue
            apart = own - its[0]
            rows.append((*row, twin_name, its[0], apart, *interval(apart, drawn - its[1], -1)))
    return pd.DataFrame(rows, columns=list(SCORES))


def _means(
    judged: Sequence[Property],
    members: pd.DataFrame,
    judge: Judge,
    scales: Sequence[float],
    weights: np.ndarray,
) -> list[tuple[float, np.ndarray]]:
    """Mean similarity over properties on each scale, of a layer and of its resamplings."""

    def matches(chosen: Sequence[Property], scale: float) -> list[Match]:
        return [judge.match(each, judge.values(each, members, scale), weights) for each in chosen]

    fixed = matches([each for each in judged if not each.scaled], 1)
    found = []
    for scale in scales:
        every = fixed + matches([each for each in judged if each.scaled], scale)
        own = float(np.mean([one.similarity(one.ks) for one in every]))
        found.append((own, np.mean([one.similarity(one.drawn) for one in every], axis=0)))
    return found


def scales(
    table: pd.DataFrame,
    judge: Judge,
    scale: float,
    sweep: Sequence[float],
    twin: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the properties in degrees on several scales, and their distance from V1.

    A network knows pixels only; how many of them make a degree of visual angle is an assumption
    (`scale`, marked `stated`), and the sweep shows what follows from others.
    `pixels_per_degree_of_macaque` is the scale on which the layer's median would be the macaque's.
    One row (`SCALES`) per layer, property and scale.
    """
    others = {} if twin is None else rows_by_layer(twin)
    rows = []
    for layer, depth, members in by_layer(table):
        for each in (one for one in PROPERTIES if one.scaled and set(one.needs) <= set(table)):
            known, middle = judge.known[each.name], judge.median(each.name)["value"]
            for pixels in sorted({*sweep, scale}):
                values = judge.values(each, members, pixels)
                finite = values[np.isfinite(values)]
                other = others.get(layer)
                its = None if other is None else judge.values(each, other, pixels)
                own = quartiles(finite)
                # Frequencies grow with the scale, sizes shrink.
                ratio = middle / own[1]
                same = pixels * (1 / ratio if each.group == "field size" else ratio)
                rows.append(
                    (
                        *(layer, depth, each.name, pixels, pixels == scale, finite.size, *own),
                        float(ks(values, known)),
                        np.nan if its is None else float(ks(its, known)),
                        *(middle, same),
                    )
                )
    return pd.DataFrame(rows, columns=list(SCALES))


def tables(
    table: pd.DataFrame,
    reference: pd.DataFrame,
    settings: Mapping[str, Any],
    twin: pd.DataFrame | None = None,
    twin_name: str = "",
) -> dict[str, pd.DataFrame]:
    """Return all tables of the stage by the stem of their file; `settings` is the config's section
    `orientation`."""
    judge, scale = Judge(reference, settings["gabor_r2"]), settings["pixels_per_degree"]
    sweep = settings["pixels_per_degree_sweep"]
    return {
        "histograms": histograms(table, judge, scale),
        "properties": card(table, judge, scale, twin),
        "scores": scores(table, judge, scale, sweep, twin, twin_name),
        "scales": scales(table, judge, scale, sweep, twin),
    }

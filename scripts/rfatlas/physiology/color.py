"""Stage `color`: what colours a channel is tuned to, and whether it is colour-opponent.

Every channel is read twice: *linear*, its mean gradient, first-layer kernel and virtual filter,
resolved into cones and into maps along the opponent axes (see `colorspace`); and *measured*, its
responses at the layer's centre unit (see `probe`) to gratings and uniform fields of many colours,
also at lower contrasts (see `color_sensitivity`). From these the classes of opponency by several
rules. docs/columns.md lists the stimuli and defines every number.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from rfatlas.fields import crops
from rfatlas.files import jobs, store
from rfatlas.files.task import Task
from rfatlas.network import graph
from rfatlas.network.model import LoadedModel, normalise
from rfatlas.physiology import color_rules, color_sensitivity, colorspace, tuning
from rfatlas.physiology.color_sensitivity import ratio
from rfatlas.physiology.probe import GREY, Bar, Probe
from rfatlas.statistics import wrapped

#: The axes of gratings: the opponent ones, then those of code values (Rafegas & Vanrell 2018).
AXES = (*colorspace.AXES, "RGB", "R-G", "R+G-2B")

# Of the same length, the longest of which all fit around mid grey.
_CODE_AXES = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
_CODE_AXES /= np.abs(_CODE_AXES).max()

#: Ratios end here: of a channel that answers to colour alone the other response is rounding.
LARGEST_RATIO = 1000.0

LINEAR = (
    "cone_l", "cone_m", "cone_s", "chromatic_share", "balance_lum", "balance_lm", "balance_s",
    "hue_linear_deg",
)  # fmt: skip

#: What the linear columns are read from: of the mean gradient, of a kernel, of a virtual filter.
SOURCES = ("", "kernel_", "virtual_")

_RATIOS = ("color_ratio", "color_ratio_s", "color_lowpass", "color_class_ratio")

#: Contrast of L+M over contrast of each chromatic axis at equal response.
SENSITIVITIES = (
    "color_sensitivity_lm", "color_sensitivity_s", "color_sensitivity_lm_same_sf",
    "color_sensitivity_s_same_sf",
)  # fmt: skip

_MEASURED = (
    "color_axis", "color_sf_cpp", "color_orientation_deg", "color_osi", "color_bandwidth_deg",
    "color_direction_deg", "hue_deg", "hue_selectivity", "flash_l", "flash_m", "flash_s",
    "harris_spatial", "harris_spectral", "harris_double", "harris_spatial_margin",
    "harris_spectral_margin",
)  # fmt: skip

COLUMNS = (
    "layer", "channel", *(prefix + name for prefix in SOURCES for name in LINEAR), *_RATIOS[:2],
    "color_ratio_rgb", *_RATIOS[2:], *(f"{name}_unrectified" for name in _RATIOS),
    *SENSITIVITIES, "color_lowpass_contrast", "color_class_sf", "color_diameter_px", "color_class",
    "color_class_energy", *_MEASURED, "color_selectivity", "color_reason",
)  # fmt: skip

# Cone-isolating flashes go so far towards the gamut's edge: further out, gamma bends the answers of
# linear units by more than a few per cent.
_FLASH = 0.5

# A map that is weaker than this share of the others is rounding.
_EMPTY = 1e-6


# ---- the linear part


def cone_weights(cones: np.ndarray) -> np.ndarray:
    """Return the weights (n, cone) of fields (n, cone, ...): their first singular vector, the sum
    of absolute values 1, with the sign that makes it excite at the peak pixel; NaN for a field of
    zeros.

    The singular vector also finds the weights of a field whose lobes cancel in a plain sum over
    pixels (after Johnson, Hawken & Shapley 2004, J. Neurophysiol. 91:2501).
    """
    flat = cones.reshape(*cones.shape[:2], -1)
    vector = np.linalg.eigh(flat @ flat.swapaxes(1, 2))[1][..., -1]
    along = np.einsum("nc,ncp->np", vector, flat)
    peak = np.take_along_axis(along, np.abs(along).argmax(1)[:, None], 1)
    total = np.abs(vector).sum(1, keepdims=True)
    return np.where(peak != 0, vector * np.sign(peak) / total, np.nan)


def opponent_maps(fields: np.ndarray) -> np.ndarray:
    """Return the maps (n, axis, h, w) of gradients `fields` (n, 3, h, w) in code values.

    Gradients are covectors: what an axis does to the unit at a pixel is sum_k g_k dp_k / da, with p
    the code values and a = 1 the end of the axis at the edge of the gamut.
    """
    return np.einsum("nkyx,ka->nayx", fields, colorspace.space().code_per_axis)


def linear(fields: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns `LINEAR` (n,) of gradients `fields` (n, 3, h, w) in code values.

    Beside them `norm`, the length of the field, and `balance_chromatic`, the balance of the
    chromatic map with more energy. NaN for a field of zeros; also the balance of a map that is
    nothing but rounding, and the hue of a field without chromatic maps.
    """
    space = colorspace.space()
    weights = cone_weights(np.einsum("nkyx,kc->ncyx", fields, space.code_per_cone))
    maps = opponent_maps(fields)
    energy = np.square(maps).sum((2, 3))
    # What the weights make of the axes.
    along = weights @ space.contrast.T
    total = np.abs(maps).sum((2, 3))
    with np.errstate(invalid="ignore", divide="ignore"):
        balance = maps.sum((2, 3)) / np.where(total > _EMPTY * total.max(1)[:, None], total, np.nan)
        share = energy[:, 1:].sum(1) / energy.sum(1)
    hue = wrapped(np.degrees(np.arctan2(along[:, 2], along[:, 1])), 360)
    coloured = np.abs(along[:, 1:]).max(1) > _EMPTY * np.abs(along).max(1)
    hue = np.where(coloured, hue, np.nan)
    columns = dict(zip(LINEAR, (*weights.T, share, *balance.T, hue), strict=True))
    columns["norm"] = np.sqrt(np.square(fields).sum((1, 2, 3)))
    columns["balance_chromatic"] = np.where(energy[:, 1] >= energy[:, 2], *balance.T[1:])
    return columns


def energy_class(columns: Mapping[str, np.ndarray], rules: Mapping[str, float]) -> np.ndarray:
    """Return the class (n,) of fields by their energy, from what `linear` says of a whole layer.

    Opponent if the chromatic maps hold at least `energy_share` of the energy; then single if the
    stronger of them keeps at least `lowpass` of its absolute sum when summed with its signs: no
    pattern can drive it more than the absolute sum, and a uniform field drives it as the sum says.
    """
    opponent = columns["chromatic_share"] >= rules["energy_share"]
    single = np.abs(columns["balance_chromatic"]) >= rules["lowpass"]
    norm = columns["norm"]
    return color_rules.classes(opponent, single, norm <= tuning.WEAK * norm.max(initial=0))


def _linear_columns(channels: int, channel: np.ndarray, fields: Any) -> dict[str, np.ndarray]:
    """Return what `linear` says of the fields (n, 3, h, w) of channels (n,), (C,) each; NaN for
    channels without, and everywhere without fields."""
    names = (*LINEAR, "norm", "balance_chromatic")
    found = {name: np.full(channels, np.nan) for name in names}
    for rows, piece in () if fields is None else crops.pieces(fields):
        for name, values in linear(piece).items():
            found[name][channel[rows]] = values
    return found


# ---- from responses to indices


def read(
    grid: np.ndarray, flicker: np.ndarray, blank: np.ndarray, rectified: bool
) -> dict[str, np.ndarray]:
    """Return responses above the blank (C,) to gratings `grid` (C, axis, orientation, frequency,
    phase) and `flicker` (C, axis, phase), those of frequency zero.

    `tuned` and `flicker` are means over phases, `crest` (C, 2) and `crest_flicker` the largest of
    the two chromatic axes; see `tuning.mean_above`, also for `rectified`.
    """
    chromatic = slice(1, 3)
    return {
        "tuned": tuning.mean_above(grid, blank, rectified),
        "flicker": tuning.mean_above(flicker, blank, rectified),
        "crest": tuning.peak_above(grid[:, chromatic], blank, rectified).max((2, 3)),
        "crest_flicker": tuning.peak_above(flicker[:, chromatic], blank, rectified),
    }


def ratio_rule(
    answers: Mapping[str, np.ndarray], blank: np.ndarray, rules: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Return ratios and classes by them (after Johnson, Hawken & Shapley 2001 and 2008).

    The ratios are those of the peak responses to L-M and to S-(L+M) over that to L+M; `lowpass` is
    the largest response to frequency zero of the more effective of the two axes over the largest to
    any of its gratings. Peaks are over all orientations and frequencies: a channel is read at its
    own orientation. `color_rules.ratio_class` has the thresholds, in `rules`.

    `answers` are what `read` returns, `blank` (C,) the response to mid grey. Returns (C,) each:
    `responsive`, bool; `color_ratio`, `color_ratio_s`, `color_ratio_rgb`, `color_lowpass` (NaN
    without any response along the axis) and `color_class_ratio`.
    """
    tuned, flicker = answers["tuned"], answers["flicker"]
    row = np.arange(len(tuned))
    every = np.concatenate([tuned.reshape(len(tuned), -1), flicker], 1)
    peak = np.maximum(tuned.max((2, 3)), flicker)
    axis = (peak[:, 2] > peak[:, 1]).astype(int)
    crest = answers["crest_flicker"][row, axis]
    largest = np.maximum(crest, answers["crest"][row, axis])
    lowpass = np.divide(crest, largest, out=np.full(len(row), np.nan), where=largest > 0)
    found = {
        "responsive": tuning.driven(every, blank) == "",
        "color_ratio": ratio(peak[:, 1], peak[:, 0], LARGEST_RATIO),
        "color_ratio_s": ratio(peak[:, 2], peak[:, 0], LARGEST_RATIO),
        "color_ratio_rgb": ratio(peak[:, 4:].max(1), peak[:, 3], LARGEST_RATIO),
        "color_lowpass": lowpass,
    }
    found["color_class_ratio"] = color_rules.ratio_class(found, rules, ~found["responsive"])
    return found


def cone_rule(
    seen: Mapping[str, np.ndarray], ratio_rgb: np.ndarray, reason: np.ndarray, rules: Mapping
) -> dict[str, np.ndarray]:
    """Return the columns (C,) of the cone rule: `SENSITIVITIES`, `color_lowpass_contrast`,
    `color_class_sf`, `color_class` and `color_reason`.

    `seen` is what `color_sensitivity.sensitivities` returns, `ratio_rgb` (C,) the column of that
    name, `reason` (C,) why a channel is not responsive; `color_rules.cone_class` has the
    thresholds, in `rules`.
    """
    columns = dict(zip(SENSITIVITIES, (*seen["own"].T, *seen["same"].T), strict=True))
    columns["color_lowpass_contrast"] = seen["lowpass"]
    responsive = reason == ""
    columns = {name: np.where(responsive, values, np.nan) for name, values in columns.items()}
    columns["color_ratio_rgb"] = ratio_rgb
    found = color_rules.cone_class(columns, rules, ~responsive)
    best = np.fmax(*(columns[name] for name in SENSITIVITIES[:2])) >= rules["sensitivity"]
    opponent = np.isin(found, color_rules.OPPONENT)
    columns["color_class_sf"] = np.where(opponent, np.where(best, "own", "same"), "")
    columns["color_class"] = found
    columns["color_reason"] = np.where(found == "", "saturated", reason)
    return columns


def margin(response: np.ndarray, blank: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Return by how much responses (C, n) go both above and below the blank (C,), as a share of the
    channel's range `extent` (C,): min(max - blank, blank - min) / range, 0 where they do not."""
    least = np.minimum(response.max(1) - blank, blank - response.min(1)).clip(0)
    return np.divide(least, extent, out=np.zeros(len(blank)), where=extent > 0)


def hue_tuning(response: np.ndarray, hue_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return preferred hue in degrees, [0, 360), and hue selectivity (C,) of responses above the
    blank (C, n), never negative, to hues (n,) evenly spaced over the circle.

    Angle and length of sum r e^{i h} / sum r: 1 for a channel that answers to one hue only, pi / 4
    for a linear one that is rectified at the blank, 0 for equal answers to all. NaN without any.
    """
    total = response.sum(1)
    vector = response @ np.exp(1j * np.radians(hue_deg))
    mean = np.divide(vector, total, out=np.full(len(total), np.nan, complex), where=total > 0)
    return wrapped(np.degrees(np.angle(mean)), 360), np.abs(mean)


def preferred_direction(response: np.ndarray, direction_deg: np.ndarray) -> np.ndarray:
    """Return the preferred direction (C,) in degrees, [0, 180), of responses (C, n) to gratings in
    directions (n,) evenly spaced over half the circle; NaN without any response."""
    vector = response @ np.exp(2j * np.radians(direction_deg))
    angle = wrapped(np.degrees(np.angle(vector)) / 2, 180)
    return np.where(np.abs(vector) > 0, angle, np.nan)


# ---- one layer


def shown(probe: Probe, axes: Mapping[str, np.ndarray], bar: Bar) -> dict[str, np.ndarray]:
    """Return the answers of a layer, each pair of them, with and without its last ReLU, float32.

    To uniform fields: `blank` (2, C), mid grey; `hue` and `code_hue` (2, C, hue), equiluminant ones
    and those of equal R + G + B; `flash` (2, C, cone, sign), which change one cone. To gratings:
    `flicker` (2, C, axis, phase), of frequency zero; `grid` (2, C, axis, orientation, frequency,
    phase).
    """
    space = colorspace.space()
    flashes = _FLASH * np.stack([space.isolating, -space.isolating], 1)
    colours = {
        "blank": np.full((1, 3), GREY),
        "hue": colorspace.uniform(colorspace.equiluminant(axes["hue"])),
        "code_hue": colorspace.code_hues(axes["hue"]),
        "flash": colorspace.uniform(flashes.reshape(-1, 3)),
    }
    every = np.concatenate(list(colours.values()))

    def field(number: np.ndarray) -> Any:
        return probe.respond(probe.uniform(every[number]))

    def grating(axis: np.ndarray, *drawn: np.ndarray) -> Any:
        return probe.respond(_draw(probe, axis, probe.carriers(*drawn)))

    answer = probe.over_grid(field, [np.arange(len(every))], bar, "fields")
    ends = np.cumsum([len(values) for values in colours.values()])[:-1]
    found = dict(zip(colours, np.split(answer, ends, axis=-1), strict=True))
    found["blank"] = found["blank"][..., 0]
    found["flash"] = found["flash"].reshape(*found["flash"].shape[:2], *flashes.shape[:2])
    kinds, zero, phase = np.arange(len(AXES)), np.zeros(1), axes["phase"]
    flicker = probe.over_grid(grating, (kinds, zero, zero, phase), bar, "flicker")
    grid = (kinds, axes["orientation"], axes["frequency"], phase)
    found["flicker"] = flicker[:, :, :, 0, 0]
    found["grid"] = probe.over_grid(grating, grid, bar, "grid")
    return found


def in_own_aperture(
    shows: color_sensitivity.Shows, seen: Mapping[str, np.ndarray], blank: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what `color_sensitivity.look` and `color_sensitivity.sensitivities` do, and `tuned`
    and `flicker` as in `seen`, what `read` returns, but those along the opponent axes from the own
    aperture, where that is smaller than the box."""
    found = color_sensitivity.look(shows, blank)
    found |= color_sensitivity.sensitivities(found["equal"], shows.starts)
    tuned, flicker, kinds = seen["tuned"].copy(), seen["flicker"].copy(), len(colorspace.AXES)
    small = np.flatnonzero(found["aperture"])
    own = found["mean"][small, found["aperture"][small]]
    flicker[small, :kinds] = own[..., 0]
    # Frequency by frequency.
    own = own[..., 1:].reshape(len(small), kinds, tuned.shape[3], tuned.shape[2])
    tuned[small, :kinds] = own.swapaxes(2, 3)
    return found | {"tuned": tuned, "flicker": flicker}


def directions(
    probe: Probe, axes: Mapping[str, np.ndarray], place: np.ndarray, bar: Bar
) -> np.ndarray:
    """Return the answers (2, C, direction, phase) to gratings in all equiluminant directions, each
    channel's at its own place (C, 3): indices of orientation, frequency and aperture, NaN where
    these are -1."""
    changes = colorspace.equiluminant(axes["direction"])

    diameter = probe.size * color_sensitivity.APERTURES

    def show(i: np.ndarray, j: np.ndarray, k: np.ndarray, *angles: np.ndarray) -> Any:
        direction, phase = angles
        carriers = probe.carriers(axes["orientation"][i], axes["frequency"][j], phase, diameter[k])
        return probe.respond(colorspace.paint(carriers, changes[direction]))

    phase = axes["phase"]
    phase = phase[:: tuning.coarse_step(len(phase), tuning.HALVED_PHASES)]
    return probe.at_places(show, place, (np.arange(len(changes)), phase), bar, "directions")


def _draw(probe: Probe, axis: np.ndarray, carriers: torch.Tensor) -> torch.Tensor:
    """Return gratings (n, 3, h, w) along axes (n,), indices of `AXES`, at their full contrast."""
    in_light = axis < len(colorspace.AXES)
    stimuli = carriers.new_empty(len(axis), 3, *carriers.shape[1:])
    here = torch.as_tensor(in_light, device=carriers.device)
    stimuli[here] = colorspace.paint(carriers[here], colorspace.space().axes[axis[in_light]])
    colours = _CODE_AXES[axis[~in_light] - len(colorspace.AXES)]
    stimuli[~here] = probe.paint(carriers[~here], colours)
    return stimuli


def color_selectivity(
    network: LoadedModel,
    layer: str,
    images: Any,
    top: Mapping[str, np.ndarray],
    batch: int,
    bar: Bar = jobs.progress,
) -> np.ndarray:
    """Return 1 - sum a(grey version) / sum a(colour version) over the top units of each channel
    (C,), NaN for channels without any (Rafegas & Vanrell 2018, Vision Research 151:7).

    A unit sees the grey version through its exact crop of the image. `images` uint8 (N, H, H, 3);
    `top` the units' `value` (C, K), `image` (C, K), -1 for none, and `yx` (C, K, 2); `batch` crops
    are run at a time.
    """
    input = network.description["input"]
    cut = crops.window(network.graph.field(layer), input["crop"])
    units = crops.list_units(top["value"], top["image"], top["yx"])
    prefix, grey = network.graph.prefix(layer), np.zeros(len(units))
    with bar(total=len(units), unit="unit", desc="grey") as progress, torch.no_grad():
        for rounds in crops.batches(units, cut, batch):
            pictures = crops.gather(images, cut, units.take(rounds[0]), network.device)
            maps = prefix(normalise(colorspace.grey_version(pictures), input)).cpu().numpy()
            maps = maps.reshape(*maps.shape[:2], *maps.shape[2:] or (1, 1))
            for members in rounds:
                own = units.take(members)
                at = (cut.position_in_crop(own.y, 0), cut.position_in_crop(own.x, 1))
                grey[members] = maps[np.arange(len(own)), own.slot, *at]
                progress.update(len(own))
    count = len(top["image"])
    total = [np.bincount(units.slot, values, count) for values in (grey, units.value)]
    known = total[1] > 0
    return 1 - np.divide(total[0], total[1], out=np.full(len(known), np.nan), where=known)


# ---- the table


def measured(
    answers: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    cone: Mapping[str, np.ndarray],
    axes: Mapping[str, np.ndarray],
    rules: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Return the measured columns (C,) of a layer but `color_selectivity`.

    `answers` are what `shown` returns; `after` and `before` what `ratio_rule` says behind and
    before the layer's last ReLU; `cone` the columns of `cone_rule`, and of the gratings in the own
    aperture `axis` (C,), 1 or 2, `tuned` (C, axis, orientation, frequency), `flicker` (C, axis) and
    `direction` (C, direction), mean responses; `axes` are `frequency`, `direction`, `hue`; of
    `rules` it is `harris_tolerance` that counts.
    """
    blank, raw_blank = answers["blank"]
    responsive, raw_responsive = cone["reason"] == "", before["responsive"]
    channels = len(blank)
    row = np.arange(channels)

    def known(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.where(where, values, np.nan)

    def flag(values: np.ndarray) -> Any:
        return pd.array(np.where(raw_responsive, values, None), "boolean")

    columns = {name: values for name, values in cone.items() if name in COLUMNS}
    for name in (*_RATIOS[:2], "color_ratio_rgb", _RATIOS[2]):
        columns[name] = known(after[name], after["responsive"])
        columns[f"{name}_unrectified"] = known(before[name], raw_responsive)
    columns[_RATIOS[3]], columns[f"{_RATIOS[3]}_unrectified"] = (
        found[_RATIOS[3]] for found in (after, before)
    )
    # A chromatic response below rounding has no tuning.
    along, axis = np.maximum(cone["tuned"].max((2, 3)), cone["flicker"]), cone["axis"]
    peak = along.max(1)
    coloured = responsive & (along[row, axis] > peak / LARGEST_RATIO)
    name = np.array(colorspace.AXES, object)[axis]
    columns["color_axis"] = np.where(coloured, name, "")
    curves = tuning.grid_tuning(cone["tuned"][row, axis], axes["frequency"])
    for name in ("sf_cpp", "orientation_deg", "osi", "bandwidth_deg"):
        columns[f"color_{name}"] = known(curves[name], coloured)
    direction = preferred_direction(np.nan_to_num(cone["direction"]), axes["direction"])
    columns["color_direction_deg"] = known(direction, coloured)
    above = tuning.rectify(answers["hue"][0], blank)
    hue, selectivity = hue_tuning(above, axes["hue"])
    seen = responsive & (above.max(1) > peak / LARGEST_RATIO)
    # Every channel answers to some hues more than to others, a grey one to the lighter ones.
    opponent = np.isin(cone["color_class"], color_rules.OPPONENT)
    columns["hue_deg"] = known(hue, seen & opponent)
    columns["hue_selectivity"] = known(selectivity, seen)
    contrast = _FLASH * colorspace.space().isolating_contrast
    flash = (answers["flash"][1, ..., 0] - answers["flash"][1, ..., 1]) / (2 * contrast)
    every = [raw_blank[:, None]]
    every += [answers[key][1].reshape(channels, -1) for key in answers if key != "blank"]
    extent = np.ptp(np.concatenate(every, 1), axis=1)
    total = np.abs(flash).sum(1)
    # Weights of a channel that hardly answers to uniform fields are rounding.
    flashed = raw_responsive & (total > extent / LARGEST_RATIO)
    weights = flash / np.where(total > 0, total, 1)[:, None]
    for cone, name in enumerate(("flash_l", "flash_m", "flash_s")):
        columns[name] = known(weights[:, cone], flashed)
    achromatic = answers["grid"][1][:, AXES.index("RGB")].reshape(channels, -1)
    flags = []
    for name, response in (("spatial", achromatic), ("spectral", answers["code_hue"][1])):
        found_margin = margin(response, raw_blank, extent)
        columns[f"harris_{name}_margin"] = known(found_margin, raw_responsive)
        flags.append(found_margin > rules["harris_tolerance"])
        columns[f"harris_{name}"] = flag(flags[-1])
    columns["harris_double"] = flag(flags[0] & flags[1])
    return columns


# ---- the whole layer


def kernels(network: LoadedModel, layer: str) -> np.ndarray | None:
    """Return the kernels (C, 3, h, w) of a layer that is one convolution of the image, in units of
    the layer per code value; None for any other layer."""
    try:
        found = graph.first_kernels(network.graph, layer)
    except graph.NoPath:
        return None
    return found.numpy() / np.array(network.description["input"]["std"])[:, None, None]


def measure(
    network: LoadedModel,
    layer: str,
    images: Any,
    top: Mapping[str, np.ndarray],
    fields: Mapping[str, Any] | None,
    virtual: np.ndarray | None,
    settings: Mapping[str, Any],
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    For `images` and `top` see `color_selectivity`. `fields` holds `channel` (n,) and
    `mean_gradient` (n, 3, S, S) of the stage receptive_fields, `virtual` the virtual filters (C, 3,
    h, w); None without. `settings` are the counts `orientations`, `frequencies`, `phases`,
    `directions`, `hues`, and the thresholds `sensitivity`, `color_ratio`, `lowpass`,
    `energy_share`, `harris_tolerance`.
    """
    probe = Probe(network, layer, task.memory_mb)
    axes = {
        "orientation": tuning.orientations(settings["orientations"]),
        "frequency": tuning.frequencies(probe.size, settings["frequencies"], np.inf),
        "phase": tuning.phases(settings["phases"]),
        "direction": tuning.orientations(settings["directions"]),
        "hue": np.arange(settings["hues"]) * 360 / settings["hues"],
    }
    answers = shown(probe, axes, task.bar)
    response, unrectified = answers["grid"]
    rectified = tuning.is_rectified(response, unrectified)
    smooth = int(rectified)
    blank, raw_blank = answers["blank"]
    seen = before = read(answers["grid"][smooth], answers["flicker"][smooth], blank, rectified)
    if (unrectified != response).any():
        before = read(unrectified, answers["flicker"][1], raw_blank, False)
    after, before = ratio_rule(seen, blank, settings), ratio_rule(before, raw_blank, settings)
    shows = color_sensitivity.Shows(probe, axes, task.bar)
    cone = in_own_aperture(shows, seen, blank)
    reason = cone["reason"]
    rgb = np.where(after["responsive"], after["color_ratio_rgb"], np.nan)
    cone |= cone_rule(cone, rgb, reason, settings)
    # Where each channel likes its more effective chromatic axis best.
    every = np.arange(probe.channels)
    best = tuning.best(cone["tuned"][every, cone["axis"]])
    place = np.stack([*best, cone["aperture"]], 1)
    place[reason != ""] = -1
    answer = directions(probe, axes, place, task.bar)[smooth]
    cone["direction"] = tuning.mean_above(answer, blank, rectified)
    diameter = probe.size * color_sensitivity.APERTURES[cone["aperture"]]
    cone["color_diameter_px"] = np.where(reason == "", diameter, np.nan)
    rows = {"layer": layer, "channel": every}
    rows |= measured(answers, after, before, cone, axes, settings)
    rows["color_selectivity"] = color_selectivity(
        network, layer, images, top, probe.batch, task.bar
    )
    own = (every, None) if fields is None else (fields["channel"][:], fields["mean_gradient"])
    sources = (own, (every, kernels(network, layer)), (every, virtual))
    columns = [_linear_columns(probe.channels, *source) for source in sources]
    opponent = np.isin(rows["color_class"], color_rules.OPPONENT)
    for prefix, source in zip(SOURCES, columns, strict=True):
        rows |= {prefix + name: source[name] for name in LINEAR}
        name = f"{prefix}hue_linear_deg"
        rows[name] = np.where(opponent, rows[name], np.nan)
    there = ~np.isnan(columns[0]["norm"])
    known = {name: values[there] for name, values in columns[0].items()}
    rows["color_class_energy"] = np.full(probe.channels, "", object)
    rows["color_class_energy"][there] = energy_class(known, settings)
    space = colorspace.space()
    attrs = {
        **task.attrs,
        **probe.place(),
        "axes": list(AXES),
        "cone_fundamentals": colorspace.CONE_FUNDAMENTALS,
        "axis_change": space.axes,
        "cone_contrast": space.contrast,
        "flash_contrast": _FLASH * space.isolating_contrast,
        "code_per_cone": space.code_per_cone,
        "hue_radius": space.radius,
    }
    with store.create(task.output, attrs) as file:
        file["channel"], file["place"] = every.astype(np.int32), place.astype(np.int16)
        for key, values in axes.items():
            file[key] = values
        # How the hues look, for whoever draws them.
        looks = colorspace.uniform(colorspace.equiluminant(axes["hue"]))
        file["hue_rgb"] = looks.astype(np.float32)
        file["response"] = response
        if rectified:
            file["unrectified"] = unrectified
        for key, (own, raw) in answers.items():
            if key != "grid":
                name = key if key in ("blank", "flicker") else f"{key}_response"
                file[name], file[f"{key}_unrectified"] = own, raw
        for name in ("tuned", "contrast", "direction"):
            key = name if name == "tuned" else f"{name}_response"
            file[key] = cone[name].astype(np.float32)
        file["tuned_flicker"] = cone["flicker"].astype(np.float32)
        file["contrast"] = color_sensitivity.CONTRASTS
        if fields is not None:
            file["field_channel"] = fields["channel"][:]
            maps = file.create_dataset("field_dkl", fields["mean_gradient"].shape, np.float32)
            for part, piece in crops.pieces(fields["mean_gradient"]):
                maps[part] = opponent_maps(piece)
    store.write_table(pd.DataFrame(rows)[list(COLUMNS)], task.table)

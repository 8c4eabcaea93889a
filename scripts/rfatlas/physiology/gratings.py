"""Stage `gratings`: the tuning of every channel to orientation, spatial frequency and phase, with
its parts `size` and `contrast`.

Achromatic drifting gratings are shown to the centre unit of a layer (see `probe`), all channels at
once: all of them at full contrast in the largest aperture, and a coarser grid in smaller apertures
and at lower contrasts, until each channel has its own; what follows is at its own best grating.
docs/columns.md says which gratings these are and defines every number.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.physiology import contrast, size, tuning
from rfatlas.physiology.probe import GREY, Bar, Probe

#: A channel is called orientation-selective, in the comparison of blanks, from this `osi` on.
SELECTIVE_OSI = 0.5

_BLANKS = ("blank", "blank_black", "blank_mean_image")

#: What is also told of the full contrast in the largest aperture, with the prefix `full_`.
FULL = (
    "osi", "circular_variance", "orientation_deg", "bandwidth_deg", "sf_cpp", "sf_bandwidth_oct",
)  # fmt: skip

#: Columns of the table; those of the parts that are on follow.
COLUMNS = (
    "layer", "channel", "osi", "osi_sf_mean", *FULL[1:], "sf_lowpass", "sf_highpass", "sf_aliased",
    "f1_f0", "grating_response", "grating_contrast", "grating_diameter_px", "grating_suppressed",
    "grating_blank", "grating_blank_dependent", *(f"full_{name}" for name in FULL),
    "grating_reason",
)  # fmt: skip


# ---- which gratings a channel is read at


@dataclass
class Own:
    """Where each channel of a layer is read.

    `aperture` and `level` (C,), indices of apertures and contrasts; `moved` (C,), whether these are
    others than the largest and full contrast; `response` float32 (C, orientation, frequency, phase)
    to the coarse grid there; `suppressed` (C,), by the largest aperture.
    """

    aperture: np.ndarray
    level: np.ndarray
    moved: np.ndarray
    response: np.ndarray
    suppressed: np.ndarray


def find_own(screen: "Screen", largest: np.ndarray, blank: np.ndarray) -> Own:
    """Find the aperture, and then the contrast, at which each channel is read.

    `largest` float32 (C, orientation, frequency, phase) are the smooth answers to the coarse grid
    in the largest aperture at full contrast, `blank` (C,) those to mid grey.
    """
    row, last = np.arange(len(blank)), len(screen.apertures) - 1
    grids = [*(screen.coarse(diameter, 1.0) for diameter in screen.apertures[:-1]), largest]
    peaks = np.stack([screen.best_above(grid, blank) for grid in grids])
    driven = tuning.driven(peaks.max(0)[:, None], blank) == ""
    aperture, suppressed = size.best_aperture(peaks)
    aperture, suppressed = np.where(driven, aperture, last), suppressed & driven
    response, level = np.stack(grids)[aperture, row], np.zeros(len(row), int)
    for place, diameter in enumerate(screen.apertures):
        left, top = driven & (aperture == place), peaks[place]
        for step, height in enumerate(screen.levels[1:], 1):
            if not left.any():
                break
            grid = screen.coarse(diameter, height)
            peak = screen.best_above(grid, blank)
            top = np.maximum(top, peak)
            left &= peak >= contrast.COMPRESSIVE * top
            level[left], response[left] = step, grid[left]
    moved = (aperture < last) | (level > 0)
    return Own(aperture, level, moved, response, suppressed)


# ---- from responses to the table


@dataclass
class Read:
    """The tuning of a layer above one blank.

    `reason` (C,) why there is none, "" otherwise; `tuned` (C, orientation, frequency) the mean
    responses in each channel's own aperture at its own contrast, `best` (C, 2) the indices of the
    largest, -1 without tuning; `columns` the indices of tuning and, as `full_`, those at full
    contrast in the largest aperture.
    """

    reason: np.ndarray
    tuned: np.ndarray
    best: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def selective(self) -> np.ndarray:
        """Whether each channel (C,) is orientation-selective."""
        return (self.columns["osi"] >= SELECTIVE_OSI) & ~np.isnan(self.columns["bandwidth_deg"])


def read(
    screen: "Screen", largest: np.ndarray, own: Own, finer: np.ndarray, blank: np.ndarray
) -> Read:
    """Read the tuning of a layer above a `blank` (C,).

    `largest` (C, orientation, frequency) are the mean responses to all gratings at full contrast in
    the largest aperture, `finer` (C,) the best of those above the axis of frequencies.
    """
    tuned, moved = largest.copy(), own.moved
    if moved.any():
        # Between the orientations of the coarse grid as between those of the curve.
        coarse = screen.above(own.response[moved], blank[moved]).swapaxes(1, 2)
        fine = tuning.periodic(coarse, len(screen.orientation))
        tuned[moved] = fine.swapaxes(1, 2).clip(0)
    peak = np.maximum(largest.max((1, 2)), tuned.max((1, 2)))
    reason = tuning.driven(peak[:, None], blank)
    beyond = tuning.driven(np.maximum(peak, finer)[:, None], blank) == ""
    reason[beyond & (finer > tuning.OUT_OF_RANGE * peak)] = "out_of_range"
    known = reason == ""
    best = np.where(known[:, None], np.stack(tuning.best(tuned), 1), -1)
    columns = tuning.grid_tuning(tuned, screen.frequency)
    columns["osi_sf_mean"] = tuning.orientation_tuning(tuned.mean(2))["osi"]
    columns["grating_response"] = tuned.max((1, 2))
    full = tuning.grid_tuning(largest, screen.frequency)
    there = tuning.driven(largest, blank) == ""
    columns = {
        name: values if values.dtype == bool else np.where(known, values, np.nan)
        for name, values in columns.items()
    } | {f"full_{name}": np.where(known & there, full[name], np.nan) for name in FULL}
    return Read(reason, tuned, best, columns)


def _flag(values: np.ndarray, known: np.ndarray) -> pd.array:
    return pd.array(np.where(known, values, None), "boolean")


# ---- one layer


class Screen:
    """Where the gratings of one layer's experiment are shown.

    `apertures` in pixels, rising, and `levels` of contrast, falling; `settings` the counts of
    `measure`.
    """

    def __init__(self, probe: Probe, settings: Mapping[str, int], parts: Collection[str], bar: Bar):
        self.probe, self.bar = probe, bar
        self.apertures = size.apertures(probe.size) if "size" in parts else np.array([probe.size])
        self.levels = contrast.STEPS if "contrast" in parts else np.ones(1)
        self.orientation = tuning.orientations(settings["orientations"])
        self.frequency = tuning.frequencies(probe.size, settings["frequencies"])
        self.phase = tuning.phases(settings["phases"])
        # Every which orientation and phase the coarse grid has; its phases are those of all but the
        # full grid and F1/F0.
        self.orientation_step = tuning.coarse_step(
            len(self.orientation), tuning.HALVED_ORIENTATIONS
        )
        self.phase_step = tuning.coarse_step(len(self.phase), tuning.HALVED_PHASES)
        self.coarse_orientation = self.orientation[:: self.orientation_step]
        self.coarse_phase = self.phase[:: self.phase_step]
        self.rectified = False

    def show(self, *drawn: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return what `Probe.respond` does to gratings; see `Probe.carriers`."""
        return self.probe.respond(self.probe.paint(self.probe.carriers(*drawn)))

    def grid(self) -> np.ndarray:
        """Return the answers (2, C, orientation, frequency, phase) to all gratings at full contrast
        in the largest aperture; from then on it is known whether the layer ends in a ReLU."""
        axes = (self.orientation, self.frequency, self.phase)
        answers = self.probe.over_grid(self.show, axes, self.bar, "grid")
        self.rectified = tuning.is_rectified(*answers)
        return answers

    def smooth(self, answers: np.ndarray) -> np.ndarray:
        """Return of answers (2, ...) those that are smooth over phase: what enters the ReLU."""
        return answers[int(self.rectified)]

    def coarse(self, diameter: float, height: float) -> np.ndarray:
        """Return the smooth answers (C, orientation, frequency, phase) to the coarse grid in an
        aperture of some pixels at some contrast."""
        axes = (self.coarse_orientation, self.frequency, self.coarse_phase)
        name = f"{diameter:.3g} px, contrast {height:.2g}"
        return self.smooth(
            self.probe.over_grid(
                lambda *drawn: self.show(*drawn, diameter, height), axes, self.bar, name
            )
        )

    def finer(self) -> np.ndarray:
        """Return the smooth answers (C, n, phase) to gratings above the axis of frequencies."""
        theta, frequency = tuning.finer(self.coarse_orientation)
        axes = (np.arange(len(theta)), self.phase)
        return self.smooth(
            self.probe.over_grid(
                lambda n, phase: self.show(theta[n], frequency[n], phase), axes, self.bar, "finer"
            )
        )

    def above(self, smooth: np.ndarray, blank: np.ndarray) -> np.ndarray:
        """Return the means of smooth answers (C, ..., phase) above the blank (C,)."""
        return tuning.mean_above(smooth, blank, self.rectified)

    def best_above(self, smooth: np.ndarray, blank: np.ndarray) -> np.ndarray:
        """Return the largest (C,) of `above`."""
        return self.above(smooth, blank).reshape(len(blank), -1).max(1)

    # ---- at each channel's own grating: a place (C, 4) holds the indices of its orientation,
    # frequency, aperture and level, -1 where it has none

    def phases(self, place: np.ndarray, phase: np.ndarray) -> np.ndarray:
        """Return the answers (C, phase) to its own grating at phases (n,)."""

        def show(i: np.ndarray, j: np.ndarray, d: np.ndarray, c: np.ndarray, phase: np.ndarray):
            drawn = self.orientation[i], self.frequency[j], phase
            return self.show(*drawn, self.apertures[d], self.levels[c])

        return self.probe.at_places(show, place, [phase], self.bar, "best")[0]

    def varied(self, place: np.ndarray, what: str, values: np.ndarray) -> np.ndarray:
        """Return the smooth answers (C, n, phase) to its own grating in diameters (n,), where
        `what` is "size", or at contrasts (n,), where it is "contrast"."""

        def show(i: np.ndarray, j: np.ndarray, own: np.ndarray, value: np.ndarray, phase):
            height = self.levels[own] if what == "size" else value
            diameter = value if what == "size" else self.apertures[own]
            return self.show(self.orientation[i], self.frequency[j], phase, diameter, height)

        axes, own = (values, self.coarse_phase), place[:, [0, 1, 3 if what == "size" else 2]]
        return self.smooth(self.probe.at_places(show, own, axes, self.bar, what))

    def plaids(self, place: np.ndarray) -> np.ndarray:
        """Return the smooth answers (C, phase of the mask, phase) to its own grating under a mask
        across it, of the same contrast, at most `contrast.PLAID`; the last without the mask."""
        count = len(self.coarse_phase)

        def show(i: np.ndarray, j: np.ndarray, d: np.ndarray, c: np.ndarray, mask, phase):
            height = np.minimum(self.levels[c], contrast.PLAID)
            there, turn = np.where(mask < count, height, 0), self.coarse_phase[mask % count]
            theta, own = self.orientation[i], (self.frequency[j], self.apertures[d])
            carriers = self.probe.carriers(theta, own[0], phase, own[1], height)
            carriers += self.probe.carriers(theta + 90, own[0], turn, own[1], there)
            return self.probe.respond(self.probe.paint(carriers))

        axes = (np.arange(count + 1), self.coarse_phase)
        return self.smooth(self.probe.at_places(show, place, axes, self.bar, "plaids"))


def measure(
    probe: Probe,
    layer: str,
    mean_image: np.ndarray,
    settings: Mapping[str, int],
    parts: Collection[str],
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    `mean_image` float (H, H, 3) in 0..1; `settings` the counts `orientations`, `frequencies`,
    `phases`, `f1_phases`, `diameters`, `contrasts`; `parts` which of "size" and "contrast" are on.
    """
    screen = Screen(probe, settings, parts, task.bar)
    fields = (
        probe.uniform([[GREY] * 3]),
        probe.uniform([[0, 0, 0]]),
        probe.cut(mean_image[None]),
    )
    blanks = [probe.respond(field)[0][0] for field in fields]
    blank = blanks[0]
    response, unrectified = answers = screen.grid()
    smooth, finer = screen.smooth(answers), screen.finer()
    own = find_own(screen, smooth[:, :: screen.orientation_step, :, :: screen.phase_step], blank)
    reads = [
        read(screen, screen.above(smooth, other), own, screen.best_above(finer, other), other)
        for other in blanks
    ]
    found = reads[0]
    known = found.reason == ""
    place = np.column_stack([found.best, own.aperture, own.level])
    place[~known] = -1
    shown = {
        "orientation": screen.orientation[place[:, 0]],
        "frequency": screen.frequency[place[:, 1]],
        "diameter": screen.apertures[place[:, 2]],
        "contrast": screen.levels[place[:, 3]],
    }
    shown = {name: np.where(known, values, np.nan) for name, values in shown.items()}
    f1_phase = tuning.phases(settings["f1_phases"])
    best_response = screen.phases(place, f1_phase)
    differs = [(other.reason == "") != known for other in reads[1:]]
    differs += [other.selective != found.selective for other in reads[1:]]
    columns = found.columns | {
        "f1_f0": np.where(known, tuning.f1_f0(tuning.rectify(best_response, blank)), np.nan),
        "sf_aliased": found.columns["sf_cpp"] * probe.stride > 0.5,
        "grating_contrast": shown["contrast"],
        "grating_diameter_px": shown["diameter"],
        "grating_suppressed": own.suppressed,
        "grating_blank": blank,
        "grating_blank_dependent": np.any(differs, 0),
        "grating_reason": found.reason,
    }
    flags = {"sf_lowpass": known, "sf_highpass": known, "grating_suppressed": known}
    flags["sf_aliased"] = known & (probe.stride > 0)
    for name, where in flags.items():
        columns[name] = _flag(columns[name], where)
    data = {
        "response": response,
        "phase": screen.phase,
        "f1_phase": f1_phase,
        "best": found.best.astype(np.int16),
        "best_response": best_response,
        "tuned": found.tuned.astype(np.float32),
        **{f"shown_{name}": values.astype(np.float32) for name, values in shown.items()},
        **dict(zip(_BLANKS, blanks, strict=True)),
    }
    if screen.rectified:
        data["unrectified"] = unrectified
    names = list(COLUMNS)
    if "size" in parts:
        diameter = size.diameters(probe.size, settings["diameters"])
        curve = screen.above(screen.varied(place, "size", diameter), blank)
        added, fitted = size.tuning(curve, diameter, found.reason)
        columns |= added
        names += size.COLUMNS
        data |= {"size_diameter": diameter, "size_response": curve.astype(np.float32)}
        data["size_fit"] = fitted.astype(np.float32)
    if "contrast" in parts:
        height = contrast.contrasts(settings["contrasts"])
        curve = screen.above(screen.varied(place, "contrast", height), blank)
        plaid = screen.above(screen.plaids(place), blank)
        added, fitted = contrast.tuning(
            curve, height, plaid[:, :-1].mean(1), plaid[:, -1], found.reason
        )
        columns |= added
        columns["contrast_saturated"] = _flag(columns["contrast_saturated"], known)
        names += contrast.COLUMNS
        data |= {"contrast": height, "contrast_response": curve.astype(np.float32)}
        data["contrast_fit"] = fitted.astype(np.float32)
    with store.create(task.output, {**task.attrs, **probe.place()}) as file:
        file["channel"] = np.arange(probe.channels, dtype=np.int32)
        file["orientation"], file["frequency"] = screen.orientation, screen.frequency
        for name, values in data.items():
            file[name] = values
    rows = pd.DataFrame({"layer": layer, "channel": np.arange(probe.channels), **columns})
    store.write_table(rows[names], task.table)

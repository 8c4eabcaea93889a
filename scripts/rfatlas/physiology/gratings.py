"""Stage `gratings`: the tuning of every channel to orientation, spatial frequency and phase.

Achromatic drifting gratings are shown to the centre unit of a layer (see `probe`): every
orientation at every frequency at several phases, all channels at once, then each channel's best
grating at more phases for F1/F0. Also the blank, mid grey, and for comparison a black field
and the mean of the data set's images.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.physiology import tuning
from rfatlas.physiology.probe import GREY, Probe

#: A channel is called orientation-selective, in the comparison of blanks, from this `osi` on.
SELECTIVE_OSI = 0.5

_BLANKS = ("blank", "blank_black", "blank_mean_image")

_TUNING = (
    "osi", "osi_sf_mean", "circular_variance", "orientation_deg", "bandwidth_deg", "sf_cpp",
    "sf_bandwidth_oct",
)  # fmt: skip

COLUMNS = (
    "layer", "channel", *_TUNING, "sf_lowpass", "sf_highpass", "sf_aliased", "f1_f0",
    "grating_response", "grating_blank", "grating_blank_dependent", "grating_reason",
)  # fmt: skip


# ---- from responses to the table


def _labels(tuned: np.ndarray, blank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (C,) of channels above a blank: driven, and orientation-selective."""
    answers = tuning.driven(tuned, blank) == ""
    row = np.arange(len(tuned))
    found = tuning.orientation_tuning(tuned[row, :, tuning.best(tuned)[1]])
    return answers, answers & (found["osi"] >= SELECTIVE_OSI) & ~np.isnan(found["bandwidth_deg"])


def table(
    layer: str,
    response: np.ndarray,
    rectified: bool,
    best_response: np.ndarray,
    blanks: Mapping[str, np.ndarray],
    frequency: np.ndarray,
    stride: int,
) -> pd.DataFrame:
    """Return the columns `COLUMNS` of a layer, one row per channel (see docs/columns.md).

    `response` (C, orientation, frequency, phase) are activations, or what enters the ReLU that
    makes them (`rectified`: they are max(response, 0)); `best_response` (C, n) activations to each
    channel's best grating at n phases; `blanks` (C,) those to mid grey (`blank`), black
    (`blank_black`) and the data set's mean image (`blank_mean_image`). `frequency` in cycles per
    pixel; `stride` of the layer's units in pixels, 0 where there is no such thing.
    """
    blank = blanks["blank"]
    tuned = tuning.mean_above(response, blank, rectified)
    reason = tuning.driven(tuned, blank)
    answers = reason == ""
    found = tuning.grid_tuning(tuned, frequency)
    found["osi_sf_mean"] = tuning.orientation_tuning(tuned.mean(2))["osi"]
    phase = tuning.f1_f0(tuning.rectify(best_response, blank))
    differs = np.zeros(len(response), bool)
    for name in _BLANKS[1:]:
        other = tuning.mean_above(response, blanks[name], rectified)
        for mine, theirs in zip(_labels(tuned, blank), _labels(other, blanks[name]), strict=True):
            differs |= mine != theirs

    def flag(values: np.ndarray, known: np.ndarray = answers) -> pd.array:
        return pd.array(np.where(known, values, None), "boolean")

    columns = {
        "layer": layer,
        "channel": np.arange(len(response)),
        **{key: np.where(answers, found[key], np.nan) for key in _TUNING},
        "sf_lowpass": flag(found["sf_lowpass"]),
        "sf_highpass": flag(found["sf_highpass"]),
        "sf_aliased": flag(found["sf_cpp"] * stride > 0.5, answers & (stride > 0)),
        "f1_f0": np.where(answers, phase, np.nan),
        "grating_response": np.where(answers, tuned.reshape(len(tuned), -1).max(1), np.nan),
        "grating_blank": blank,
        "grating_blank_dependent": differs,
        "grating_reason": reason,
    }
    return pd.DataFrame(columns)[list(COLUMNS)]


# ---- one layer


class Experiment:
    """The stimuli of one layer in their order, and the answers so far.

    First the grid: orientation, frequency and phase, the last fastest. Then the distinct best
    gratings of the channels that any grating drives, each at `f1_phases` phases.
    """

    def __init__(self, probe: Probe, settings: Mapping[str, int], mean_image: np.ndarray):
        self._probe = probe
        self.orientation = tuning.orientations(settings["orientations"])
        self.frequency = tuning.frequencies(probe.size, settings["frequencies"])
        self.phase = tuning.phases(settings["phases"])
        self.f1_phase = tuning.phases(settings["f1_phases"])
        fields = (
            probe.uniform([[GREY] * 3]),
            probe.uniform([[0, 0, 0]]),
            probe.cut(mean_image[None]),
        )
        answers = (probe.respond(field)[0][0] for field in fields)
        self.blanks = dict(zip(_BLANKS, answers, strict=True))

    def _show(self, orientation: np.ndarray, frequency: np.ndarray, phase: np.ndarray) -> Any:
        carriers = self._probe.carriers(orientation, frequency, phase)
        return self._probe.respond(self._probe.paint(carriers))

    def grid(self, bar: Callable[..., Any]) -> np.ndarray:
        """Return the responses (2, C, orientation, frequency, phase), the second with the layer's
        last ReLU left out."""
        axes = (self.orientation, self.frequency, self.phase)
        return self._probe.over_grid(self._show, axes, bar, "grid")

    def best(self, tuned: np.ndarray, bar: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return each channel's best grating (C, 2), indices of orientation and frequency, -1 where
        none drives it, and the responses (C, f1_phases) to it, NaN there.

        `tuned` (C, orientation, frequency): mean responses above the blank.
        """
        best = np.stack(tuning.best(tuned), 1)
        best[tuning.driven(tuned, self.blanks["blank"]) != ""] = -1

        def show(i: np.ndarray, j: np.ndarray, phase: np.ndarray) -> Any:
            return self._show(self.orientation[i], self.frequency[j], phase)

        return best, self._probe.at_places(show, best, [self.f1_phase], bar, "best")[0]


def measure(
    probe: Probe,
    layer: str,
    mean_image: np.ndarray,
    settings: Mapping[str, int],
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table.

    `mean_image` float (H, H, 3) in 0..1; `settings` the counts `orientations`, `frequencies`,
    `phases`, `f1_phases`.
    """
    experiment = Experiment(probe, settings, mean_image)
    response, unrectified = experiment.grid(task.bar)
    rectified = tuning.is_rectified(response, unrectified)
    smooth = unrectified if rectified else response
    tuned = tuning.mean_above(smooth, experiment.blanks["blank"], rectified)
    best, best_response = experiment.best(tuned, task.bar)
    place = {"size": probe.size, "stride": probe.stride, "crop": probe.crop}
    with store.create(task.output, {**task.attrs, **place, "centre": probe.centre}) as file:
        file["channel"] = np.arange(probe.channels, dtype=np.int32)
        file["orientation"], file["frequency"] = experiment.orientation, experiment.frequency
        file["phase"], file["f1_phase"] = experiment.phase, experiment.f1_phase
        file["response"], file["best_response"] = response, best_response
        if rectified:
            file["unrectified"] = unrectified
        file["best"] = best.astype(np.int16)
        for name, values in experiment.blanks.items():
            file[name] = values
    rows = table(
        layer,
        smooth,
        rectified,
        best_response,
        experiment.blanks,
        experiment.frequency,
        probe.stride,
    )
    store.write_table(rows, task.table)

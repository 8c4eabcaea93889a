"""Stage `gratings`: the tuning of every channel to orientation, spatial frequency and phase.

Achromatic drifting gratings are shown to the centre unit of a layer (see `probe`): every
orientation at every frequency at several phases, all channels at once, then each channel's best
grating at more phases for F1/F0. Also the blank, mid grey, and for comparison a black field
and the mean of the data set's images.
"""

from collections.abc import Iterable, Mapping
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


def _columns(
    tuned: np.ndarray,
    other: Iterable[tuple[np.ndarray, np.ndarray]],
    best_response: np.ndarray,
    blank: np.ndarray,
    frequency: np.ndarray,
    stride: int,
) -> dict[str, Any]:
    """Return the columns `COLUMNS` but the key, (C,) each (see docs/columns.md).

    `tuned` (C, orientation, frequency) are mean responses above the `blank` (C,), `other` those
    above other blanks, with these; `best_response` (C, n) activations to each channel's best
    grating at n phases. `frequency` in cycles per pixel; `stride` of the layer's units in pixels, 0
    where there is no such thing.
    """
    reason = tuning.driven(tuned, blank)
    answers = reason == ""
    found = tuning.grid_tuning(tuned, frequency)
    found["osi_sf_mean"] = tuning.orientation_tuning(tuned.mean(2))["osi"]
    found["f1_f0"] = tuning.f1_f0(tuning.rectify(best_response, blank))
    found["grating_response"] = tuned.reshape(len(tuned), -1).max(1)
    differs = np.zeros(len(tuned), bool)
    for above in other:
        for mine, theirs in zip(_labels(tuned, blank), _labels(*above), strict=True):
            differs |= mine != theirs

    def flag(values: np.ndarray, known: np.ndarray = answers) -> pd.array:
        return pd.array(np.where(known, values, None), "boolean")

    return {
        **{name: np.where(answers, values, np.nan) for name, values in found.items()},
        "sf_lowpass": flag(found["sf_lowpass"]),
        "sf_highpass": flag(found["sf_highpass"]),
        "sf_aliased": flag(found["sf_cpp"] * stride > 0.5, answers & (stride > 0)),
        "grating_blank": blank,
        "grating_blank_dependent": differs,
        "grating_reason": reason,
    }


# ---- one layer


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
    orientation = tuning.orientations(settings["orientations"])
    frequency = tuning.frequencies(probe.size, settings["frequencies"])
    phase, f1_phase = (tuning.phases(settings[key]) for key in ("phases", "f1_phases"))

    def show(orientation: np.ndarray, frequency: np.ndarray, phase: np.ndarray) -> Any:
        return probe.respond(probe.paint(probe.carriers(orientation, frequency, phase)))

    fields = (
        probe.uniform([[GREY] * 3]),
        probe.uniform([[0, 0, 0]]),
        probe.cut(mean_image[None]),
    )
    blanks = [probe.respond(field)[0][0] for field in fields]
    response, unrectified = probe.over_grid(show, (orientation, frequency, phase), task.bar, "grid")
    rectified = tuning.is_rectified(response, unrectified)
    smooth = unrectified if rectified else response
    above = [(tuning.mean_above(smooth, blank, rectified), blank) for blank in blanks]
    tuned, blank = above[0]
    # Each channel's best grating, where any drives it, at more phases; what several share is shown
    # once.
    best = np.stack(tuning.best(tuned), 1)
    best[tuning.driven(tuned, blank) != ""] = -1
    (best_response, _) = probe.at_places(
        lambda i, j, phase: show(orientation[i], frequency[j], phase),
        best,
        [f1_phase],
        task.bar,
        "best",
    )
    with store.create(task.output, {**task.attrs, **probe.place()}) as file:
        file["channel"] = np.arange(probe.channels, dtype=np.int32)
        file["orientation"], file["frequency"] = orientation, frequency
        file["phase"], file["f1_phase"] = phase, f1_phase
        file["response"], file["best_response"] = response, best_response
        if rectified:
            file["unrectified"] = unrectified
        file["best"] = best.astype(np.int16)
        known = best[:, 0] >= 0
        shown = {
            "orientation": orientation[best[:, 0]],
            "frequency": frequency[best[:, 1]],
            "diameter": float(probe.size),
            "contrast": 1.0,
        }
        for name, values in shown.items():
            file[f"shown_{name}"] = np.where(known, values, np.nan).astype(np.float32)
        for name, values in zip(_BLANKS, blanks, strict=True):
            file[name] = values
    columns = _columns(tuned, above[1:], best_response, blank, frequency, probe.stride)
    rows = pd.DataFrame({"layer": layer, "channel": np.arange(probe.channels), **columns})
    store.write_table(rows[list(COLUMNS)], task.table)

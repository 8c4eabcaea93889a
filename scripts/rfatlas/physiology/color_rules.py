"""The classes of colour opponency, and the rules that put a channel into one.

Torch-free, so that tables can ask with other thresholds what the stage `color` decided with its
own. docs/columns.md defines every number.
"""

from collections.abc import Mapping

import numpy as np

#: The classes of the cone rule, from the least to the most that a channel tells about colours.
UNRESPONSIVE, NON, SINGLE, DOUBLE = CLASSES = (
    "unresponsive", "non_opponent", "single_opponent", "double_opponent",
)  # fmt: skip

#: Those of channels that colour drives in its own right.
OPPONENT = (SINGLE, DOUBLE)

#: Harris, Mihai & Hare 2019 ask two questions of a cell; one that is both is double-opponent.
HARRIS = ("neither", "spatial", "spectral", "double")

#: A channel whose `color_ratio_rgb` is below this sees grey only: of equiluminant colours it sees
#: what they do to R + G + B, and may like that little better than the full contrast of grey.
GREY_ONLY = 0.01


#: The chromatic axes in the names of columns.
AXES = ("lm", "s")


def cone_class(
    columns: Mapping[str, np.ndarray], rules: Mapping[str, float], unresponsive: np.ndarray
) -> np.ndarray:
    """Return the class (C,) by the cone rule, "" where all contrasts saturate the channel.

    Opponent where the contrast of L+M over that of a chromatic axis at equal response is at least
    the rules' `sensitivity`, unless the channel sees grey only (`GREY_ONLY`); single where
    `color_lowpass_contrast` is at least `lowpass`. A low-pass channel may be so at one frequency
    for both axes: only low-pass colour hides behind luminance that is band-pass. Channels that are
    `unresponsive` (C,), bool, have the class of that name.
    """
    own, same = (
        np.fmax(*(np.asarray(columns[f"color_sensitivity_{axis}{end}"], float) for axis in AXES))
        for end in ("", "_same_sf")
    )
    single = columns["color_lowpass_contrast"] >= rules["lowpass"]
    opponent = np.where(single, np.fmax(own, same), own) >= rules["sensitivity"]
    opponent &= ~(columns["color_ratio_rgb"] < GREY_ONLY)
    found = classes(opponent, single, unresponsive)
    found[np.isnan(own) & ~unresponsive] = ""
    return found


def ratio_class(
    columns: Mapping[str, np.ndarray], rules: Mapping[str, float], unresponsive: np.ndarray
) -> np.ndarray:
    """Return the class (C,) by the ratio of responses.

    Opponent where `color_ratio` or `color_ratio_s` is at least the rules' `color_ratio`, unless the
    channel sees grey only (`GREY_ONLY`); then single where `color_lowpass` is at least `lowpass`.
    What is NaN in the `columns` (C,) is below every threshold; channels that are `unresponsive`
    (C,), bool, have no class.
    """
    largest = np.fmax(columns["color_ratio"], columns["color_ratio_s"])
    opponent = (largest >= rules["color_ratio"]) & (columns["color_ratio_rgb"] >= GREY_ONLY)
    return classes(opponent, columns["color_lowpass"] >= rules["lowpass"], unresponsive)


def classes(opponent: np.ndarray, single: np.ndarray, unresponsive: np.ndarray) -> np.ndarray:
    """Return the class (C,) of channels by three answers (C,), bool."""
    found = np.where(opponent, np.where(single, SINGLE, DOUBLE), NON)
    return np.where(unresponsive, UNRESPONSIVE, found).astype(object)


def harris_class(spatial: np.ndarray, spectral: np.ndarray, unresponsive: np.ndarray) -> np.ndarray:
    """Return the class (C,), one of `HARRIS`, by the answers (C,), bool, to Harris' questions."""
    found = np.array(HARRIS, object)[spatial + 2 * spectral]
    return np.where(unresponsive, UNRESPONSIVE, found)

"""Colour at equal response: the contrasts along the opponent axes that drive a channel alike.

A channel's contrast response, at the grating that drives it most, turns every response into the
contrast of that grating which gives the same (`equivalent`), and these are compared, in several
apertures. docs/color.md explains why, docs/columns.md the numbers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rfatlas.physiology import colorspace, tuning
from rfatlas.physiology.probe import Bar, Probe

#: Contrasts, as shares of what the gamut allows along an axis, rising. Beyond half of that, gamma
#: bends the answers of linear units: dark goes further than light.
CONTRASTS = 2.0 ** np.arange(-6, 0)

#: Diameters of the aperture, as shares of the box of the receptive field. In smaller ones a disc
#: covers the centre of a concentric field alone, which then looks low-pass.
APERTURES = np.array([1, 0.7, 0.5])

#: Sensitivities end here: the lowest contrast of colour does what the highest of luminance does.
LARGEST = CONTRASTS[-1] / CONTRASTS[0]

#: A channel that is less sensitive to colour than a grey one sees what gamma makes of it: twice the
#: frequency that is shown, to which luminance of that frequency is no equal.
LEAST = 0.15

# A channel is suppressed that does less in the whole box than so much of its best; an aperture
# suits it in which it does so much of that.
_SUPPRESSED, _SUITS = 0.8, 0.9

# A channel that does so much of its best at this lower contrast is saturated at full contrast, and
# read at the lower one; one that does so much at half of a contrast is bent there.
_SATURATED = 0.95
_BENT = 0.8
_LOWER = CONTRASTS.tolist().index(1 / 16)


# ---- stimuli


class Shows:
    """What gratings along the opponent axes are shown to the units of a probe.

    `orientation` and `frequency` (degrees, cycles per pixel) make `places`: frequency zero, a
    uniform disc that flickers, then all orientations at the lowest of the frequencies, and so on;
    `phase` in degrees.
    """

    def __init__(self, probe: Probe, axes: Mapping[str, np.ndarray], bar: Bar):
        orientation, frequency = axes["orientation"], axes["frequency"]
        self.probe, self.bar, self.phase = probe, bar, axes["phase"]
        self.angle = np.append(0, np.tile(orientation, len(frequency)))
        self.cycles = np.append(0, np.repeat(frequency, len(orientation)))
        #: Where each frequency begins among the places.
        self.starts = np.append(0, 1 + len(orientation) * np.arange(len(frequency)))

    def _show(
        self, aperture: Any, axis: Any, place: Any, contrast: Any, phase: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        carriers = self.probe.carriers(
            self.angle[place],
            self.cycles[place],
            phase,
            self.probe.size * APERTURES[aperture],
            contrast,
        )
        return self.probe.respond(colorspace.paint(carriers, colorspace.space().axes[axis]))

    def everywhere(self, contrast: float) -> np.ndarray:
        """Return the answers (2, C, aperture, axis, place, phase), float32, at a contrast in all
        apertures, with and without the last ReLU."""
        axes = [np.arange(n) for n in (len(APERTURES), len(colorspace.AXES), len(self.angle))]
        axes += [np.array([contrast]), self.phase]
        return self.probe.over_grid(self._show, axes, self.bar, "apertures")[..., 0, :]

    def contrasts(self, best: np.ndarray) -> np.ndarray:
        """Return the answers (2, C, contrast, phase) of each channel at its best aperture, axis,
        place and phase (C, 4) to all contrasts but the highest, at phases from the best one on,
        NaN where the places are -1."""

        def show(aperture: Any, axis: Any, place: Any, phase: Any, contrast: Any, turn: Any) -> Any:
            return self._show(aperture, axis, place, contrast, self.phase[phase] + turn)

        step = tuning.coarse_step(len(self.phase), tuning.HALVED_PHASES)
        axes = (CONTRASTS[:-1], self.phase[::step])
        return self.probe.at_places(show, best, axes, self.bar, "contrasts")


def look(shows: Shows, blank: np.ndarray) -> dict[str, np.ndarray]:
    """Show the opponent axes in all apertures, and to each channel its best grating at several
    contrasts.

    `blank` (C,) are the responses to mid grey. Returns `mean` (C, aperture, axis, place), responses
    above the blank, averaged over phase, at the highest contrast; `reason` (C,) as `tuning.driven`
    has it; `contrast` (C, contrast), the largest over phases to the best grating, NaN for channels
    that nothing drives; and `equal` (C, aperture, axis, place), what `equivalent` makes of the
    largest over phases, NaN for channels that all contrasts saturate. The mean would not do: what
    gamma adds to a wave makes it positive for more or less than half of the time.
    """
    above = tuning.rectify(shows.everywhere(CONTRASTS[-1])[0], blank)
    mean, crest, flat = above.mean(4), above.max(4), above.reshape(len(above), -1)
    reason = tuning.driven(mean.reshape(len(mean), -1), blank)
    best = np.stack(np.unravel_index(flat.argmax(1), above.shape[1:]), 1)
    best = np.where(reason[:, None] == "", best, -1)
    highest = np.where(reason == "", flat.max(1), np.nan)
    lower = tuning.rectify(shows.contrasts(best)[0], blank).max(2)
    curve = np.column_stack([lower, highest])
    saturated = curve[:, _LOWER] >= _SATURATED * curve[:, -1]
    if saturated.any():
        weaker = tuning.rectify(shows.everywhere(CONTRASTS[_LOWER])[0], blank).max(4)
        crest = np.where(saturated[:, None, None, None], weaker, crest)
    equal = equivalent(curve, crest)
    # Below the lowest contrast a curve that is bent there already is not known.
    bent = (curve[:, 0] > 0) & (curve[:, 0] >= _BENT * curve[:, 1])
    equal[bent | np.isnan(curve[:, 0])] = np.nan
    return {"mean": mean, "reason": reason, "contrast": curve, "equal": equal}


# ---- from responses to sensitivities


def equivalent(curve: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return the lowest contrasts (C, ...) at which curves (C, contrast) over `CONTRASTS`, never
    negative, reach responses (C, ...), never negative: at most the highest.

    Interpolated on logarithmic axes; below the lowest contrast the response is taken to rise from 0
    in proportion.
    """
    # The lowest contrast that does as much counts, should a curve fall again.
    rising = np.maximum.accumulate(np.nan_to_num(curve), 1)
    flat = response.reshape(len(curve), -1)
    after = (rising[:, :, None] < flat[:, None]).sum(1).clip(max=len(CONTRASTS) - 1)
    before = (after - 1).clip(0)
    high, low = (np.take_along_axis(rising, index, 1) for index in (after, before))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.log(flat / low) / np.log(high / low)
        # From no response at all: in proportion.
        risen = np.where(
            low > 0, CONTRASTS[before] * 2**part, CONTRASTS[before] * (1 + flat / high)
        )
        found = np.where(after == 0, CONTRASTS[0] * flat / high, risen)
    return np.where(flat > 0, np.fmin(found, CONTRASTS[-1]), 0).reshape(response.shape)


def suits(equal: np.ndarray) -> np.ndarray:
    """Return which aperture (C,) suits each channel, by equivalent contrasts (C, aperture, n) of
    some gratings, the apertures falling: the whole box, unless the best of the gratings does less
    than eight tenths there of what it does in the best aperture; then the largest in which it does
    nine tenths of that.

    Eight, as a linear unit of centre and surround loses up to an eighth, and would look low-pass in
    a disc on its centre.
    """
    peak = equal.max(2)
    best = peak.max(1, keepdims=True)
    return np.where(peak[:, 0] < _SUPPRESSED * best[:, 0], (peak >= _SUITS * best).argmax(1), 0)


def ratio(colour: np.ndarray, luminance: np.ndarray, largest: float = LARGEST) -> np.ndarray:
    """Return responses or equivalent contrasts, never negative, over others, at most `largest`; 0
    where there is no colour, NaN where they are unknown."""
    bound = np.maximum(luminance, colour / largest)
    found = np.divide(colour, bound, out=np.zeros(np.shape(colour)), where=bound > 0)
    return np.where(np.isnan(colour), np.nan, found)


def sensitivities(equal: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the sensitivities to the chromatic axes by equivalent contrasts `equal` (C, aperture,
    axis, place), of whose places frequencies begin at `starts`.

    `own` (C, 2), each axis at the grating that suits it; `same` (C, 2), both axes at one frequency
    and in one aperture: the largest over those in which the chromatic axis does half of its best,
    or `own` where that is less than `LEAST`; `axis` (C,), 1 or 2, the one with the larger product
    of `same` and its best response, as `same` may be large where colour does little; `aperture`
    (C,), the one that suits that axis, an index of `APERTURES`; `lowpass` (C,), what zero frequency
    does there, as a share of the best grating there, at most 1.
    """
    row = np.arange(len(equal))
    by_frequency = np.maximum.reduceat(equal, starts, axis=3)
    luminance = by_frequency[:, :, 0]
    own, same = np.empty((len(equal), 2)), np.empty((len(equal), 2))
    for index in (0, 1):
        colour = by_frequency[:, :, index + 1]
        best = colour.max((1, 2), keepdims=True)
        own[:, index] = ratio(best[:, 0, 0], luminance.max((1, 2)))
        found = np.where(colour >= best / 2, ratio(colour, luminance), 0).max((1, 2))
        same[:, index] = np.where(own[:, index] >= LEAST, found, own[:, index])
    axis = 1 + np.nan_to_num(same * by_frequency[:, :, 1:].max((1, 3))).argmax(1)
    aperture = suits(np.nan_to_num(equal[row, :, axis, 1:]))
    zero, grating = equal[row, aperture, axis, 0], equal[row, aperture, axis, 1:].max(1)
    total = np.maximum(zero, grating)
    lowpass = np.divide(zero, total, out=np.full(len(row), np.nan), where=total > 0)
    return {"own": own, "same": same, "axis": axis, "aperture": aperture, "lowpass": lowpass}

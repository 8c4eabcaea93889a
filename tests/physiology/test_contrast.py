"""Contrast responses: curves with known parameters, planted saturating and divisive units."""

from collections.abc import Callable

import h5py
import numpy as np
import pytest
import torch
from test_gratings import EXTENT, apart, gabor_field, measure, spectrum
from test_receptive_fields import STD, loaded
from torch import nn

from rfatlas.physiology import contrast

HEIGHT = contrast.contrasts(12)

# ---- curves


def read_contrast(curve, plaid=1.0, alone=2.0, reason=""):
    columns, _ = contrast.tuning(
        np.atleast_2d(curve), HEIGHT, np.array([plaid]), np.array([alone]),
        np.array([reason], object),
    )  # fmt: skip
    return {name: values[0] for name, values in columns.items()}


def test_contrast_responses_say_what_is_known():
    found = read_contrast(3 * contrast.naka_rushton(HEIGHT)(np.array([0.1]), np.array([2.0]))[0])
    for name, value in (("r_max", 3), ("c50", 0.1), ("exponent", 2), ("r2", 1)):
        assert found[f"contrast_{name}"] == pytest.approx(value, rel=1e-3)
    # R(c) = half of R(1): c^2 / (c^2 + 0.01) = 0.5 / 1.01; between two of 12 contrasts.
    assert found["contrast_half"] == pytest.approx(np.sqrt(0.01 / 1.02), rel=0.03)
    assert found["contrast_saturated"] and found["contrast_reason"] == ""
    assert found["cross_orientation_index"] == pytest.approx(0.5)
    linear = read_contrast(HEIGHT)
    assert linear["contrast_reason"] == "unsaturated" and not linear["contrast_saturated"]
    assert np.isnan(linear["contrast_r_max"]) and np.isnan(linear["contrast_c50"])
    assert linear["contrast_half"] == pytest.approx(0.5, rel=0.01)
    assert linear["contrast_exponent"] == pytest.approx(1, abs=0.05)
    step = read_contrast(np.ones(12))
    assert step["contrast_reason"] == "saturated" and step["contrast_saturated"]
    assert np.isnan(step["contrast_half"]) and np.isnan(step["contrast_c50"])
    assert read_contrast(np.full(12, np.nan), reason="weak")["contrast_saturated"] is None


# ---- planted units


class Planted(nn.Module):
    """Linear `fields` (n, k, k) of grey pictures, a unit's answer the sum with (code value - mean)
    over all pixels; rectified or not; then a `mix` (m, n) of them, rectified again; and `behind`
    which anything goes, at the layer `end`."""

    def __init__(self, fields, behind=None, mix=None, relu=True):
        super().__init__()
        n, extent, _ = np.shape(fields)
        self.conv = nn.Conv2d(3, n, extent, 1, extent // 2, bias=False)
        self.conv.weight = nn.Parameter(torch.tensor(grey(fields), dtype=torch.float32))
        layers = [nn.ReLU()] if relu else []
        if mix is not None:
            layers += [nn.Conv2d(n, len(mix), 1, bias=False), nn.ReLU()]
            layers[-2].weight = nn.Parameter(
                torch.tensor(mix, dtype=torch.float32)[..., None, None]
            )
        self.layers, self.behind, self.end = nn.Sequential(*layers), behind, nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.conv(x))
        return self.end(self.behind(x) if self.behind else x)


def grey(fields: np.ndarray) -> np.ndarray:
    """Kernels (n, 3, k, k) that answer to grey pictures as fields (n, k, k) do."""
    return np.asarray(fields)[:, None] * np.array(STD)[:, None, None] / 3


def planted(fields: np.ndarray, behind: Callable | None = None, **options):
    return loaded(Planted(fields, behind, **options).eval(), EXTENT)


def balanced(size: int, theta: float, frequency: float, phase: float, sigma: float) -> np.ndarray:
    """A round Gabor that does not answer to a uniform field."""
    field = gabor_field(size, theta, frequency, phase, sigma, sigma)
    return field - field.mean()


def drive(fields: np.ndarray, theta: float, frequency: float) -> np.ndarray:
    """The amplitude (n,) of the answers of fields to a grating of full contrast."""
    return spectrum(grey(fields), np.array([theta]), np.array([frequency]))[:, 0, 0]


def oblique(gain: float = 1.0) -> np.ndarray:
    """A Gabor at 45 degrees that gratings drive by `gain`."""
    field = balanced(11, 45, 0.2, 60, 2)[None]
    return gain / max(drive(field, 45, f)[0] for f in np.geomspace(0.1, 0.3, 40)) * field


@pytest.mark.parametrize("gain", [10.0, 30.0, 100.0])
@pytest.mark.parametrize("kind", ["clamp", "smooth"])
def test_a_saturated_unit_is_tuned_in_its_dynamic_range(gain, kind, tmp_path):
    """As the same unit without saturation, at every gain."""
    behind = {"clamp": lambda x: x.clamp(max=1), "smooth": lambda x: x / (1 + x)}[kind]
    plain = measure(planted(oblique()), "end", tmp_path / "a.h5").iloc[0]
    found = measure(planted(oblique(gain), behind), "end", tmp_path / "b.h5").iloc[0]
    assert plain["grating_contrast"] == 1 and not plain["contrast_saturated"]
    assert found["contrast_saturated"] and found["grating_contrast"] <= 4 / gain
    assert apart(found["orientation_deg"], 45) < 1
    width = plain["bandwidth_deg"]
    # At half of its maximum a smooth curve bends a little.
    assert found["bandwidth_deg"] == pytest.approx(width, rel=0.1 if kind == "clamp" else 0.6)
    assert not found["full_bandwidth_deg"] < 1.8 * width
    assert found["osi"] > 0.9 and found["f1_f0"] > 1


def test_naka_rushton_of_an_energy_unit_with_a_constant(tmp_path):
    """E / (E + s^2) of a quadrature pair: c^2 / (c^2 + c50^2) at every phase."""
    pair = np.array([balanced(15, 0, 0.2, phase, 2.2) for phase in (0, 90)])

    def behind(x: torch.Tensor) -> torch.Tensor:
        energy = x[:, :1] ** 2 + x[:, 1:] ** 2
        return energy / (energy + 0.05)

    found = measure(planted(pair, behind, relu=False), "end", tmp_path / "x.h5").iloc[0]
    with h5py.File(tmp_path / "x.h5") as file:
        own = drive(
            pair, *(float(file[f"shown_{axis}"][0]) for axis in ("orientation", "frequency"))
        )
        assert file["contrast"].shape == (12,) and file["contrast_fit"].shape == (1, 12)
    assert found["contrast_exponent"] == pytest.approx(2, rel=0.02)
    assert found["contrast_c50"] == pytest.approx(np.sqrt(0.05) / own.mean(), rel=0.02)
    assert found["contrast_r_max"] == pytest.approx(1, rel=0.01) and found["contrast_r2"] > 0.999


# ---- plaids


def test_masks_do_what_closed_forms_say(tmp_path):
    """A linear unit is not suppressed; one that likes both gratings adds them; a divisive one is.

    mean over both phases of max(a cos p + b cos q, 0), by brute force.
    """
    one, other = (balanced(15, theta, 0.2, 0, 2.4) for theta in (0, 90))
    table = measure(planted(np.array([one, one + 0.5 * other])), "end", tmp_path / "a.h5")
    phase = 2 * np.pi * np.arange(720) / 720
    wave = np.cos(phase)[:, None] + 0.5 * np.cos(phase)
    expected = 1 - wave.clip(0).mean() * np.pi
    assert expected < -0.05
    found = table["cross_orientation_index"].to_numpy()
    assert found == pytest.approx([0, expected], abs=0.01)

    def behind(x: torch.Tensor) -> torch.Tensor:
        x = x.square()
        own, across = x[:, :1] + x[:, 1:2], x[:, 2:3] + x[:, 3:4]
        return own / (1e-3 + own + across)

    quartet = np.array([balanced(15, theta, 0.2, p, 2.4) for theta in (0, 90) for p in (0, 90)])
    found = measure(planted(quartet, behind, relu=False), "end", tmp_path / "b.h5").iloc[0]
    with h5py.File(tmp_path / "b.h5") as file:
        shown = [float(file[f"shown_{axis}"][0]) for axis in ("orientation", "frequency")]
        height = min(file["shown_contrast"][0], contrast.PLAID)
    own = (drive(quartet, *shown)[:2].mean() * height) ** 2
    expected = 1 - (1e-3 + own) / (1e-3 + 2 * own)
    assert found["cross_orientation_index"] == pytest.approx(expected, abs=0.02)

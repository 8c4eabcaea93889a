"""An atlas of an invented run, for the tests of its files and those in a browser."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
from snakemake.iocontainers import InputFiles, Params
from synthetic import Run

from rfatlas import stages
from rfatlas.files import store
from rfatlas.physiology import tuning
from rfatlas.tables import channels

ROOT = Path(__file__).resolve().parents[1]

#: A class name that would run a script if it were taken for markup.
MARKUP = "<img src=x onerror=\"window.broken=1\"> & 'tabby'</script>"


def write_table(run: Run, folder: Path, more: pd.DataFrame | None = None) -> pd.DataFrame:
    """Write the table of channels of an invented run, with more columns at its end, and read it."""
    names = [layer.name for layer in run.layers]
    table = channels.build(
        folder / "activations.h5",
        folder / "model.json",
        folder / "images.h5",
        names,
        [folder / "receptive_fields" / f"{name}.csv" for name in names],
        0.1,
        0.001,
        0.5,
    )
    if more is not None:
        table = pd.concat([table, more], axis=1)
    store.write_table(table, folder / "channels.csv")
    return store.read_table(folder / "channels.csv")


def told(absent: dict[str, str]) -> list[dict]:
    """What the page is told of the stages, with the reasons why some are `absent`."""
    return [stage | {"absent": absent.get(stage["name"], "")} for stage in stages.pages()]


def sources(
    run: Run, folder: Path, *names: str, files: dict | None = None, **settings
) -> tuple[InputFiles, Params]:
    """Files and settings of the atlas of an invented run, with stages of these names."""
    given = {
        "description": folder / "model.json",
        "activations": folder / "activations.h5",
        "images": folder / "images.h5",
        "channels": folder / "channels.csv",
        "columns": ROOT / "docs" / "columns.md",
        **dict.fromkeys(("findings", "card", "matched"), ()),
        **{name: [folder / name / f"{layer.name}.h5" for layer in run.layers] for name in names},
    }
    params = {
        "run": run.name,
        "network": "demo_net.resnet",
        "source": "top_per_image",
        "stages": told({}),
        **dict.fromkeys(("references", "runs"), ()),
    }
    return InputFiles(fromdict=given | (files or {})), Params(fromdict=params | settings)


def handed_over(site: Path, name: str) -> dict:
    """The value that a data script of a site hands to the page."""
    text = (site / "data" / f"{name}.js").read_text(encoding="ascii")
    given, inner = re.fullmatch(r'rfatlas\.receive\("([\w-]+)",(.*)\);\n', text, re.DOTALL).groups()
    assert given == name
    return json.loads(inner)


def unpacked(column: dict) -> list:
    """The values of a column, from its data script; None for what is missing."""
    if "numbers" in column:
        numbers = np.frombuffer(base64.b64decode(column["numbers"]), "<f8")
        return [None if np.isnan(number) else number for number in numbers.tolist()]
    codes = np.frombuffer(base64.b64decode(column["codes"]), "<u4")
    return [[None, *column["values"]][code] for code in codes]


def write_gratings(path: Path, channels: int) -> dict[str, np.ndarray]:
    """Write gratings shown to invented linear units, rectified, each with an orientation of its
    own: that of channel c is 15 c degrees. The last one answers to none."""
    orientation, frequency = np.arange(12) * 15.0, 0.05 * 2.0 ** np.arange(4)
    phase, fine = np.arange(8) * 45.0, np.arange(24) * 15.0
    o, f, p = np.meshgrid(orientation, frequency, phase, indexing="ij")
    answers = [
        np.exp(np.cos(np.radians(2 * (o - 15 * channel))) - np.log2(f / 0.1) ** 2)
        * np.cos(np.radians(p - 10 * channel))
        for channel in range(channels)
    ]
    unrectified = np.stack(answers).astype(np.float32)
    unrectified[-1] = -1
    best = np.array([[channel % 12, 1] for channel in range(channels)], np.int16)
    best[-1] = -1
    with store.create(path, store.provenance("gratings", {})) as file:
        file["channel"] = np.arange(channels, dtype=np.int32)
        file["orientation"], file["frequency"] = orientation, frequency
        file["phase"], file["f1_phase"] = phase, fine
        file["response"], file["unrectified"] = unrectified.clip(0), unrectified
        file["blank"], file["best"] = np.zeros(channels, np.float32), best
        strength = [unrectified[c, b[0], b[1]].max() for c, b in enumerate(best)]
        wave = np.cos(np.radians(fine - 10 * np.arange(channels)[:, None])).clip(0)
        file["best_response"] = (np.array(strength)[:, None] * wave).astype(np.float32)
        file["tuned"] = tuning.mean_above(unrectified, np.zeros(channels), rectified=True)
        file["size_diameter"], file["contrast"] = 2.0 ** np.arange(1, 5), 0.1 * 2.0 ** np.arange(4)
        for part in ("size", "contrast"):
            file[f"{part}_response"] = np.tile([0.0, 1, 2, 1], (channels, 1))
            file[f"{part}_fit"] = np.tile([0.1, 1, 1.9, 1.1], (channels, 1))
    return {"orientation": orientation, "frequency": frequency}


def measured(channels: int, seed: int = 0) -> pd.DataFrame:
    """Invented columns of the stages that this run does not have: Gabors, gratings, ablations."""
    random = np.random.default_rng(seed)
    change = random.normal(-0.01, 0.01, channels)
    table = pd.DataFrame(
        {
            "gabor_x": random.uniform(-1, 1, channels),
            "gabor_y": random.uniform(-1, 1, channels),
            "gabor_sigma_x": random.uniform(1, 2, channels),
            "gabor_sigma_y": random.uniform(1, 3, channels),
            "gabor_theta_deg": random.uniform(0, 180, channels),
            "gabor_r2": random.uniform(0, 1, channels),
            "osi": random.uniform(0, 1, channels),
            "orientation_deg": (15.0 * np.arange(channels)) % 180,
            "color_class": random.choice(["non_opponent", "single_opponent"], channels),
            "zero_delta_top1": change,
            "zero_delta_top1_lo": change - 0.005,
            "zero_delta_top1_hi": change + 0.005,
        }
    )
    table.loc[[1, 5], ["osi", "gabor_theta_deg"]] = np.nan
    return table

"""Stage `atlas`: a site to look at the channels of a run, which opens from disk with no network.

`results/<run>/atlas/index.html` needs nothing but the folder it lies in. A page that is opened from
disk may not fetch files, so the data are scripts that hand over JSON. `data/overview.js` comes at
once: layers, and what the columns mean (from docs/columns.md). The values come when they are asked
for: `data/column-<i>.js` of a column of the table, for the grid and the scatter plot, and
`data/passports-<layer>-<block>.js` of BLOCK channels with all their numbers, curves and top units;
pictures likewise. What the page does is in page/; uPlot, which draws the scatter plot's
axes, is in page/uplot/ as its authors publish it (MIT licence).
"""

import base64
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import jinja2
import numpy as np
import pandas as pd

from rfatlas.atlas import pictures
from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.physiology import tuning

#: A text column with at most so many different values is offered as a choice.
MOST_CHOICES = 40

#: Channels whose passports share a file.
BLOCK = 16

#: Classes of the bars in a passport: those that drive a channel most, that lose most without it.
TOP_CLASSES = 5

#: The modes of ablation, the first that a layer has in front.
MODES = ("zero", "mean", "shuffle")

#: Hues of the curve in a passport; the stage `color` measures every degree.
HUES = 72

_DIGITS = 9
_CURVE_DIGITS = 4

#: What of the page are templates; everything else there is copied.
TEMPLATE, START = "index.html.j2", "start.html.j2"


# ---- what the columns mean


@dataclass(frozen=True)
class Column:
    """A row of docs/columns.md; `section` is its heading, `stages` those named
    there. `pattern` matches the names it explains (`<mode>` in a documented name is any word)."""

    pattern: str
    section: str
    stages: str
    meaning: str
    unit: str
    formula: str
    source: str


def read_columns(text: str) -> list[Column]:
    """Return the documented columns of docs/columns.md, in order.

    A row of a table may name several columns. A section may say in a list that its columns exist
    with other prefixes, too: `* `<prefix>`: <of what>`, the prefix of the table's names first; each
    of those is a column of its own here.
    """
    columns: list[Column] = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        title, stages = re.fullmatch(r"(.*?)(?: \(stages? (.*)\))?", heading).groups()
        rows = [
            Column(re.sub(r"<\w+>", "[a-z]+", name), _plain(title), _plain(stages or ""), *cells)
            for names, *cells in _rows(body)
            for name in re.findall(r"`([\w<>]+)`", names)
        ]
        base, *others = _prefixes(body) or [("", "")]
        columns += rows
        columns += [
            replace(
                row,
                pattern=prefix + row.pattern.removeprefix(base[0]),
                meaning=f"{row.meaning} [{what}]",
            )
            for prefix, what in others
            for row in rows
        ]
    return columns


def _rows(body: str) -> Iterable[list[str]]:
    """Yield the five cells of each table row that names columns, the first one unchanged."""
    for line in body.splitlines():
        if re.match(r"\| `[\w<>]+`", line):
            names, *cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield [names, *([_plain(cell) for cell in cells] + [""] * 4)[:4]]


def _prefixes(body: str) -> list[tuple[str, str]]:
    """Return the prefixes that a section lists, with what each stands for."""
    found = re.findall(r"^\* ((?:`\w+_`,? ?)+): (.*(?:\n  .*)*)", body, re.MULTILINE)
    return [
        (prefix, re.split("[;(]", _plain(re.sub(r"\s+", " ", what)))[0].strip())
        for prefixes, what in found
        for prefix in re.findall(r"`(\w+_)`", prefixes)
    ]


def read_references(text: str) -> list[str]:
    """Return the references at the end of docs/columns.md."""
    _, _, tail = text.partition("## References")
    return [_plain(line[2:]) for line in tail.splitlines() if line.startswith("* ")]


def _plain(markdown: str) -> str:
    """Return the text of a piece of Markdown as it is used in the tables."""
    linked = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", markdown)
    return linked.replace("`", "").replace("\\|", "|").strip()


#: Stands in for the documentation of a column that has none.
UNDOCUMENTED = Column("", "Other", "", "This column is not documented.", "", "", "")


def explain(name: str, columns: Iterable[Column]) -> Column:
    """Return the documentation of a column of the table."""
    found = (column for column in columns if re.fullmatch(column.pattern, name))
    return next(found, UNDOCUMENTED)


# ---- the table


def kind(values: pd.Series) -> str:
    """Return how a column is filtered: `number`, `boolean`, `choice` or `text`."""
    known = values.dropna()
    if len(known) and known.map(lambda value: isinstance(value, bool | np.bool_)).all():
        return "boolean"
    if pd.api.types.is_numeric_dtype(values):
        return "number"
    return "choice" if known.nunique() <= MOST_CHOICES else "text"


def plain_values(values: Iterable[Any], digits: int = _DIGITS) -> list[Any]:
    """Return values as JSON can hold them: numbers with that many significant digits, None for what
    is missing, the texts "inf" and "-inf" for infinities."""
    return [_plain_value(value, digits) for value in values]


def _plain_value(value: Any, digits: int) -> Any:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str):
        return value
    if value is None or value is pd.NA or math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    number = float(f"{value:.{digits}g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def about_columns(table: pd.DataFrame, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return of each column of the table its name, kind, explanation, and how many channels have a
    value (`known`); of a choice also the values there are."""
    found = []
    for name in table.columns:
        about = asdict(explain(name, columns))
        del about["pattern"]
        known = table[name].dropna()
        entry = {"name": name, "kind": kind(table[name]), **about, "known": len(known)}
        if entry["kind"] == "choice":
            entry["choices"] = sorted(known.unique().tolist())
        found.append(entry)
    return found


def packed(values: pd.Series) -> dict[str, Any]:
    """Return the values of a column in the fewest bytes that keep them, for a data script.

    Numbers are `numbers`, float64 with NaN for what is missing; truth values `flags`, a byte each,
    0, 1, or 2 for missing; texts are `texts`, each once, and `codes`, uint16 or uint32 (`width`),
    place in `texts` plus 1, 0 for missing. Arrays are little-endian, in base64.
    """
    sort = kind(values)
    if sort == "number":
        return {"numbers": _base64(values.to_numpy(float, na_value=np.nan), "<f8")}
    if sort == "boolean":
        flags = [2 if missing else int(value) for value, missing in _with_gaps(values)]
        return {"flags": _base64(np.array(flags), "u1")}
    codes, texts = pd.factorize(values)
    width = 2 if len(texts) < 2**16 - 1 else 4
    coded = _base64(codes + 1, f"<u{width}")
    return {"texts": [str(text) for text in texts], "width": width, "codes": coded}


def _with_gaps(values: pd.Series) -> Iterable[tuple[Any, bool]]:
    return zip(values.tolist(), values.isna().tolist(), strict=True)


def _base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode("ascii")


#: What the table of layers counts: title, column, and the filter of the page that finds them; of a
#: measure without a filter the median is shown.
MEASURES = (
    ("inactive", "inactive", "is yes"),
    ("orientation-selective", "orientation_selective", "is yes"),
    ("single-opponent", "color_class", "is single_opponent"),
    ("double-opponent", "color_class", "is double_opponent"),
    ("accuracy changes without it (q ≤ 0.05)", "zero_q", "≤ 0.05"),
    ("median OSI", "osi", None),
    ("median spatial frequency (cycles/px)", "sf_cpp", None),
    ("median sigma of the effective RF (px)", "erf_sigma", None),
    ("median class selectivity", "class_selectivity", None),
)


def by_layer(table: pd.DataFrame) -> dict[str, Any]:
    """Return what each layer has of MEASURES, as far as the table has their columns.

    `measures` are [title, column, filter]; `rows`, one per layer in the order of the table, have
    for each [how many channels pass the filter, how many have a value], or the median; None where
    no channel has a value.
    """
    measures = [list(measure) for measure in MEASURES if measure[1] in table]
    rows = []
    for _, layer in table.groupby("layer", sort=False):
        found: list[Any] = []
        for _, column, asked in measures:
            known = layer[column].dropna()
            if known.empty:
                found.append(None)
            elif asked is None:
                found.append(_plain_value(float(known.median()), _CURVE_DIGITS))
            else:
                operator, value = asked.split()
                passes = known <= float(value) if operator == "≤" else known.astype(str) == value
                if value == "yes":
                    passes = known.astype(bool)
                found.append([int(passes.sum()), len(known)])
        rows.append(found)
    return {"measures": measures, "rows": rows}


# ---- curves


def curves(files: Mapping[str, h5py.File], channels: int) -> dict[str, Any]:
    """Return the tuning curves of a layer, of those stages that `files` holds.

    Each is `axis` (n,) and, per channel, n values or None where the channel has no curve:
    `orientation` (degrees), `frequency` (cycles per pixel), `phase` (degrees) of the best grating;
    `hue` (degrees in the DKL plane); `direction` of chromatic gratings (degrees, the plane's other
    half is the same); `axes`, with an `axis` of frequencies and n values for each of L+M, L-M,
    S-(L+M). `surface` has two axes, `orientation` and `frequency`, and the responses to all
    gratings as bytes, 255 for the largest, in base64.
    """
    found = {}
    if "gratings" in files:
        found |= grating_curves(files["gratings"], channels)
    if "color" in files:
        found |= color_curves(files["color"], channels)
    return found


def grating_curves(file: h5py.File, channels: int) -> dict[str, Any]:
    """Return the curves through each channel's best grating: what the indices were read from."""
    rectified = "unrectified" in file
    response, blank = file["unrectified" if rectified else "response"], file["blank"][:]
    best = file["best"][:]
    tuned = tuning.mean_above(response[:], blank, rectified)
    answers = [bool((place >= 0).all()) for place in best]
    orientation = [
        tuned[row, :, best[row, 1]] if answers[row] else None for row in range(len(tuned))
    ]
    frequency = [tuned[row, best[row, 0]] if answers[row] else None for row in range(len(tuned))]
    phase = file["best_response"][:]
    phase = [
        (phase[row] - blank[row]).clip(0) if answers[row] else None for row in range(len(tuned))
    ]
    rows = file["channel"][:]
    surfaces: list[str | None] = [None] * channels
    for row, channel in enumerate(rows):
        if answers[row]:
            share = tuned[row].clip(0) / tuned[row].max()
            surfaces[channel] = _base64((255 * share).round(), "u1")
    return {
        "orientation": _curve(file["orientation"][:], orientation, rows, channels),
        "frequency": _curve(file["frequency"][:], frequency, rows, channels),
        "phase": _curve(file["f1_phase"][:], phase, rows, channels),
        "surface": {
            "orientation": _rounded(file["orientation"][:]),
            "frequency": _rounded(file["frequency"][:]),
            "values": surfaces,
        },
    }


def color_curves(file: h5py.File, channels: int) -> dict[str, Any]:
    """Return the tuning to hue, and to frequency along the three opponent axes at the orientation
    of the best chromatic grating."""
    rows, place = file["channel"][:], file["place"][:]
    step = max(1, len(file["hue"]) // HUES)
    hues = (file["hue_response"][:] - file["blank"][:][:, None]).clip(0)[:, ::step]
    tuned = file["tuned"]
    axes = [
        tuned[row, :3, place[row, 0]] if place[row, 0] >= 0 else None for row in range(len(rows))
    ]
    hue = _curve(file["hue"][::step], [h if h.any() else None for h in hues], rows, channels)
    looks = (255 * file["hue_rgb"][:: 2 * step].clip(0, 1)).round().astype(int)
    hue["colours"] = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in looks]
    found = {"hue": hue, "axes": _curve(file["frequency"][:], axes, rows, channels)}
    if "direction_response" in file:
        answer = file["direction_response"][:]
        directions = [values if values.max() > 0 else None for values in answer]
        found["direction"] = _curve(file["direction"][:], directions, rows, channels)
    return found


def _curve(
    axis: np.ndarray, values: Sequence[np.ndarray | None], rows: np.ndarray, channels: int
) -> dict[str, Any]:
    each: list[list | None] = [None] * channels
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            each[row] = _rounded(value)
    return {"axis": _rounded(axis), "values": each}


def _rounded(values: np.ndarray) -> list:
    if np.ndim(values) > 1:
        return [_rounded(value) for value in values]
    return plain_values(np.asarray(values, float).tolist(), _CURVE_DIGITS)


# ---- units and classes


def top_units(
    image: np.ndarray, value: np.ndarray, names: Sequence[str], labels: np.ndarray
) -> dict[str, Any]:
    """Return the top units of channels: activation, image and label.

    `image` and `value` (C, K), image -1 where there is no unit. `files` are the images that occur,
    a unit is [place in files, label (-1 unknown), activation].
    """
    used = np.unique(image[image >= 0])
    place = {int(index): number for number, index in enumerate(used)}
    units = [
        [
            [place[int(index)], int(labels[index]), _plain_value(float(activation), _CURVE_DIGITS)]
            for index, activation in zip(images, values, strict=True)
            if index >= 0
        ]
        for images, values in zip(image, value, strict=True)
    ]
    return {"files": [names[index] for index in used], "units": units}


def class_bars(class_mean: np.ndarray, count: int = TOP_CLASSES) -> list[list[list]]:
    """Return of each channel the `count` classes with the largest mean activation: [label, mean].

    `class_mean` (n_classes, C), NaN for classes without images. A channel that all classes drive
    alike has none.
    """
    bars = []
    for means in class_mean.T:
        seen = np.flatnonzero(np.isfinite(means))
        order = seen[np.argsort(-means[seen], kind="stable")][:count]
        alike = not len(seen) or means[seen].max() == means[seen].min()
        bars.append(
            [] if alike else [[int(i), _plain_value(means[i], _CURVE_DIGITS)] for i in order]
        )
    return bars


def class_losses(change: np.ndarray, images: np.ndarray, count: int = TOP_CLASSES) -> list[list]:
    """Return of each channel the classes whose accuracy changes most when it is ablated.

    `change` (C, n_classes), NaN for classes without images, `images` how many each class has. Of a
    channel: [label, change, images], the losses first, at most `count` losses and `count` gains,
    none that do not change.
    """
    found = []
    for row in change:
        order = np.argsort(np.nan_to_num(row), kind="stable")
        losses = [i for i in order[:count] if row[i] < 0]
        gains = [i for i in order[::-1][:count] if row[i] > 0][::-1]
        found.append(
            [
                [int(i), _plain_value(float(row[i]), _CURVE_DIGITS), int(images[i])]
                for i in losses + gains
            ]
        )
    return found


def ablated_classes(file: h5py.File, channels: int) -> dict[str, Any] | None:
    """Return `class_losses` of a layer's channels in the first of MODES that it was ablated in:
    `mode`, `values` (None for channels left out); None if it was not."""
    mode = next((mode for mode in MODES if f"{mode}/class_delta" in file), None)
    if mode is None:
        return None
    change = file[f"{mode}/class_delta"][:]
    images = np.bincount(file["label"][:], minlength=change.shape[1])
    each: list[list | None] = [None] * channels
    for channel, found in zip(file["channel"][:], class_losses(change, images), strict=True):
        each[channel] = found
    return {"mode": mode, "values": each}


def matches(tables: Iterable[pd.DataFrame], run: str, layer: str, channels: int) -> list[list]:
    """Return of each channel of a layer those of other runs that it was matched with: [run,
    channel, correlation], once per run.

    `tables` are the tables matched.csv of the groups, each with the name of its reference in
    `attrs["reference"]`.
    """
    found: list[dict[str, list]] = [{} for _ in range(channels)]
    for table in tables:
        reference = table.attrs["reference"]
        for row in table[table["layer"] == layer].dropna(subset=["correlation"]).itertuples():
            pair = {reference: int(row.channel), row.run: int(row.run_channel)}
            if run in pair:
                own = pair.pop(run)
                for other, channel in pair.items():
                    value = _plain_value(row.correlation, _CURVE_DIGITS)
                    found[own].setdefault(other, [other, channel, value])
    return [list(each.values()) for each in found]


# ---- the site


@dataclass(frozen=True)
class Sources:
    """The files an atlas is made from.

    `stages` maps a stage to its files by layer, of those stages that are on; `virtual_filters` is
    one file for all layers. `absent` says of the stages that there is nothing of why that is.
    `findings` is findings.json or None, `matched` the tables matched.csv of the stage `compare`,
    each with its reference in front, `runs` the other runs that have an atlas beside this one's.
    `columns` is docs/columns.md, `assets` the folder page.
    """

    run: str
    description: Path
    activations: Path
    images: Path
    channels: Path
    stages: Mapping[str, Mapping[str, Path]]
    virtual_filters: Path | None
    columns: Path
    assets: Path
    absent: Mapping[str, str] = field(default_factory=dict)
    findings: Path | None = None
    matched: Sequence[tuple[str, Path]] = ()
    runs: Sequence[str] = ()


#: What an atlas reads of the files of a stage.
DATASETS = {
    "receptive_fields": ("channel", "patch", "count", "mean_image", "mean_gradient", "effective"),
    "gratings": ("channel", "orientation", "frequency", "blank", "best", "response", "f1_phase")
    + ("best_response",),
    "color": ("channel", "place", "hue", "hue_response", "hue_rgb", "blank", "tuned", "frequency"),
    "preferred_stimulus": ("channel", "image", "off_image"),
    "ablation": ("channel", "label"),
}


def build(sources: Sources, source: str, folder: Path, log=lambda text: None) -> None:
    """Write the atlas of a run into `folder`; index.html comes last.

    Parameters
    ----------
    source
        Which list of units the receptive fields were made from (`receptive_fields.source`).
    log
        Called with a line of progress per layer.

    Raises
    ------
    RfatlasError
        If a file is missing or unfinished or lacks a dataset, or the table has a layer that
        model.json lacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = json.loads(sources.description.read_text(encoding="utf-8"))
    known = {layer["name"]: layer for layer in description["layers"]}
    table = store.read_table(sources.channels)
    with store.open(sources.images, "images") as images:
        require(images, ("names", "labels"))
        names, labels = images["names"].asstr()[:], images["labels"][:]
        class_names = [str(name) for name in images.attrs["class_names"]]
    text = sources.columns.read_text(encoding="utf-8")
    columns = about_columns(table, read_columns(text))
    plain = [plain_values(table[name].tolist()) for name in table]
    matched = []
    for reference, path in sources.matched:
        matched.append(store.read_table(path))
        matched[-1].attrs["reference"] = reference
    layers = []
    with store.open(sources.activations, "activations") as activations:
        output = dict(activations["output"].attrs) if "output" in activations else {}
        for number, (name, rows) in enumerate(table.groupby("layer", sort=False)):
            if name not in known:
                raise RfatlasError(f"{sources.channels}: layer {name!r} is not in model.json")
            require(activations, [f"{name}/{source}_{what}" for what in ("image", "value", "yx")])
            layer, top, channels = known[name], activations[name], len(rows)
            first = int(rows.index[0])
            with ExitStack() as stack:
                files = _open(sources, name, stack)
                tiles = pictures.tiles(files, top, layer, description["input"]["crop"], source)
                found, missing = pictures.write(tiles, channels, folder, number)
                curve = curves(files, channels)
                losses = (
                    ablated_classes(files["ablation"], channels) if "ablation" in files else None
                )
            bars = class_bars(top["class_mean"][:]) if "class_mean" in top else None
            image, value = (
                top[f"{source}_{what}"][:, : pictures.PATCHES] for what in ("image", "value")
            )
            others = matches(matched, sources.run, name, channels)
            for block, begin in enumerate(range(0, channels, BLOCK)):
                part = slice(begin, min(begin + BLOCK, channels))
                here = range(first + part.start, first + part.stop)
                data = {
                    "first": here.start,
                    "values": [[values[row] for values in plain] for row in here],
                    "missing": missing[part],
                    **{key: _part(entry, part) for key, entry in curve.items()},
                    "top": top_units(image[part], value[part], names, labels),
                    "classes": None if bars is None else bars[part],
                    "losses": None if losses is None else _part(losses, part),
                    "matches": others[part],
                }
                write_script(folder / "data", f"passports-{number:02d}-{block:02d}", data)
            layers.append(
                {
                    "name": name,
                    "first": first,
                    "channels": channels,
                    "window": next((t.size for t in tiles if t.name == "mean_gradient"), None),
                    **found,
                }
            )
            log(f"{name}: {channels} channels, {len(tiles)} pictures each")
    for number, name in enumerate(table):
        write_script(folder / "data", f"column-{number:03d}", packed(table[name]))
    facts = {
        "images": len(names),
        "channels": len(table),
        "layers": len(layers),
        "top1": _share(output.get("top1")),
        "weights": str(description.get("weights_sha256", ""))[:12],
        "factory": description.get("factory", ""),
    }
    overview = {
        "run": sources.run,
        "block": BLOCK,
        "classNames": class_names,
        "thumbnails": {
            kind: title
            for kind, title in pictures.THUMBNAILS.items()
            if any(kind in layer["sprites"] for layer in layers)
        },
        "layers": layers,
        "columns": columns,
        "byLayer": by_layer(table),
        "references": read_references(text),
        "absent": dict(sources.absent),
        "findings": None if sources.findings is None else _claims(sources.findings),
        "runs": list(sources.runs),
    }
    write_script(folder / "data", "overview", overview)
    _copy_assets(sources.assets, folder)
    page = render(sources.assets / TEMPLATE, run=sources.run, facts=facts, runs=sources.runs)
    (folder / "index.html").write_text(page, encoding="utf-8")


def require(file: h5py.File | h5py.Group, names: Iterable[str]) -> None:
    """Raise RfatlasError, naming the file, if it lacks one of these datasets."""
    for name in names:
        if name not in file:
            raise RfatlasError(
                f"{file.file.filename}: no dataset {name!r}; another version of rfatlas may have "
                "written it, or it was changed: delete it and rerun"
            )


def _part(curve: Mapping[str, Any], part: slice) -> dict[str, Any]:
    """Return what `curves` gives of a layer for some of its channels."""
    return {**curve, "values": curve["values"][part]}


def _claims(path: Path) -> list[dict[str, Any]]:
    """Return of each claim of findings.json what the pages say of it; `lines` are the rows of the
    tables behind it, [table, line]."""
    claims = json.loads(path.read_text(encoding="utf-8"))["claims"]
    return [
        {
            **{key: claim[key] for key in ("claim", "question", "sentence", "missing")},
            "lines": [[row["table"], row["line"]] for row in claim["rows"]],
        }
        for claim in claims
    ]


def _open(sources: Sources, layer: str, stack: ExitStack) -> dict[str, h5py.File | h5py.Group]:
    files: dict[str, h5py.File | h5py.Group] = {}
    for stage, paths in sources.stages.items():
        if layer in paths:
            files[stage] = stack.enter_context(store.open(paths[layer], stage))
            require(files[stage], DATASETS[stage])
    if sources.virtual_filters is not None:
        file = stack.enter_context(store.open(sources.virtual_filters, "virtual_filters"))
        require(file, [layer])
        files["virtual_filters"] = file[layer]
    return files


def _share(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def write_script(folder: Path, name: str, value: Any) -> None:
    """Write `<name>.js`, a script that hands a JSON value to `rfatlas.receive` of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    (folder / f"{name}.js").write_text(f'rfatlas.receive("{name}",{text});\n', encoding="ascii")


def start_page(
    runs: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]], template: Path
) -> str:
    """Return the page that leads to the atlases of all runs.

    Parameters
    ----------
    runs
        Of each run `name`, `network`, `weights`, `dataset`, the path of its `activations`, how many
        `layers` and `channels` are analysed, and whether it has an `atlas` and `findings`.
    groups
        The runs that are compared, by the name of their group.
    """
    shown = []
    for run in runs:
        with store.open(run["activations"], "activations") as file:
            output = dict(file["output"].attrs) if "output" in file else {}
        shown.append({**run, "top1": _share(output.get("top1"))})
    return render(template, runs=shown, groups=groups)


def render(template: Path, **values: Any) -> str:
    """Return a page made from a template; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def _copy_assets(assets: Path, folder: Path) -> None:
    for path in sorted(assets.rglob("*")):
        if path.is_file() and path.suffix != ".j2":
            place = folder / path.relative_to(assets)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)

"""Stage `atlas`: a site to look at the channels of a run, which opens from disk with no network.

`results/<run>/atlas/index.html` needs nothing but the folder it lies in. A page that is opened from
disk may not fetch files, so the data are scripts that hand over JSON: `data/table.js` (the channel
table and what its columns mean, from docs/columns.md) at once, `data/layer-<n>.js` (curves, top
units) and the pictures when they are looked at. What the page does is in workflow/atlas/.
"""

import importlib.util
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import jinja2
import numpy as np
import pandas as pd

from rfatlas import atlas_pictures, store, tuning
from rfatlas.errors import RfatlasError

#: A text column with at most so many different values is offered as a choice.
MOST_CHOICES = 40

#: Classes of the bars in a passport.
TOP_CLASSES = 5

#: Hues of the curve in a passport; the stage `color` measures every degree.
HUES = 72

_DIGITS = 9
_CURVE_DIGITS = 4

#: What of workflow/atlas/ is a template; everything else there is copied.
TEMPLATE = "index.html.j2"


# ---- what the columns mean


@dataclass(frozen=True)
class Column:
    """A row of docs/columns.md; `section` is the heading it stands under, `stages` those named
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
    """Yield the five cells of each table row that names columns, the first one as it stands."""
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


def table_data(table: pd.DataFrame, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return the columns of the table with their values, kind and explanation."""
    found = []
    for name in table.columns:
        about = asdict(explain(name, columns))
        del about["pattern"]
        values = plain_values(table[name].tolist())
        found.append({"name": name, "kind": kind(table[name]), **about, "values": values})
    return found


# ---- curves


def curves(files: Mapping[str, h5py.File], channels: int) -> dict[str, Any]:
    """Return the tuning curves of a layer, of those stages that `files` holds.

    Each is `axis` (n,) and, per channel, n values or None where the channel has no curve:
    `orientation` (degrees), `frequency` (cycles per pixel), `phase` (degrees) of the best grating;
    `hue` (degrees in the DKL plane); `axes`, with an `axis` of frequencies and n values for each of
    L+M, L-M, S-(L+M).
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
    return {
        "orientation": _curve(file["orientation"][:], orientation, rows, channels),
        "frequency": _curve(file["frequency"][:], frequency, rows, channels),
        "phase": _curve(file["f1_phase"][:], phase, rows, channels),
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
    return {"hue": hue, "axes": _curve(file["frequency"][:], axes, rows, channels)}


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
    top: h5py.Group, source: str, names: Sequence[str], labels: np.ndarray, shown: int
) -> dict[str, Any]:
    """Return the first `shown` top units of each channel: activation, image and label.

    `files` are the images that occur; a unit is [place in files, label (-1 unknown), activation].
    """
    image = top[f"{source}_image"][:, :shown]
    value = top[f"{source}_value"][:, :shown]
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


# ---- the site


@dataclass(frozen=True)
class Sources:
    """The files an atlas is made from.

    `stages` maps a stage to its files by layer, of those stages that are on; `virtual_filters` is
    one file for all layers. `columns` is docs/columns.md, `assets` the folder workflow/atlas.
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
        If a file is missing or unfinished, or the table has a layer that model.json lacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = json.loads(sources.description.read_text(encoding="utf-8"))
    known = {layer["name"]: layer for layer in description["layers"]}
    table = store.read_table(sources.channels)
    with store.open(sources.images, "images") as images:
        names, labels = images["names"].asstr()[:], images["labels"][:]
        class_names = [str(name) for name in images.attrs["class_names"]]
    text = sources.columns.read_text(encoding="utf-8")
    layers = []
    with store.open(sources.activations, "activations") as activations:
        output = dict(activations["output"].attrs) if "output" in activations else {}
        for number, (name, rows) in enumerate(table.groupby("layer", sort=False)):
            if name not in known:
                raise RfatlasError(f"{sources.channels}: layer {name!r} is not in model.json")
            layer, top = known[name], activations[name]
            with ExitStack() as stack:
                files = _open(sources, name, stack)
                tiles = atlas_pictures.tiles(
                    files, top, layer, description["input"]["crop"], source
                )
                found, missing = atlas_pictures.write(tiles, len(rows), folder, number)
                data = {"missing": missing, **curves(files, len(rows))}
            data["top"] = top_units(top, source, names, labels, atlas_pictures.PATCHES)
            data["classes"] = class_bars(top["class_mean"][:]) if "class_mean" in top else None
            write_script(folder / "data" / f"layer-{number:02d}.js", "layer", number, data)
            layers.append(
                {
                    "name": name,
                    "first": int(rows.index[0]),
                    "channels": len(rows),
                    "window": next((t.size for t in tiles if t.name == "mean_gradient"), None),
                    **found,
                }
            )
            log(f"{name}: {len(rows)} channels, {len(tiles)} pictures each")
    overview = {
        "run": sources.run,
        "images": len(names),
        "classNames": class_names,
        "thumbnails": {
            kind: title
            for kind, title in atlas_pictures.THUMBNAILS.items()
            if any(kind in layer["sprites"] for layer in layers)
        },
        "layers": layers,
        "columns": table_data(table, read_columns(text)),
    }
    write_script(folder / "data" / "table.js", "table", overview)
    facts = {
        "images": len(names),
        "channels": len(table),
        "layers": len(layers),
        "top1": _share(output.get("top1")),
        "weights": str(description.get("weights_sha256", ""))[:12],
        "factory": description.get("factory", ""),
    }
    _copy_assets(sources.assets, folder)
    page = render(
        sources.assets,
        run=sources.run,
        facts=facts,
        sections=sections(overview["columns"]),
        references=read_references(text),
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _open(sources: Sources, layer: str, stack: ExitStack) -> dict[str, h5py.File | h5py.Group]:
    files: dict[str, h5py.File | h5py.Group] = {
        stage: stack.enter_context(store.open(paths[layer], stage))
        for stage, paths in sources.stages.items()
    }
    if sources.virtual_filters is not None:
        file = stack.enter_context(store.open(sources.virtual_filters, "virtual_filters"))
        files["virtual_filters"] = file[layer]
    return files


def _share(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def write_script(path: Path, receiver: str, *values: Any) -> None:
    """Write a script that hands JSON values to `rfatlas.<receiver>` of the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps(value, separators=(",", ":"), allow_nan=False) for value in values]
    path.write_text(f"rfatlas.{receiver}({','.join(texts)});\n", encoding="ascii")


def sections(columns: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the columns of the table by section of docs/columns.md, for the page's glossary."""
    found: dict[str, list] = {}
    for column in columns:
        found.setdefault(column["section"], []).append(column)
    return [{"title": title, "columns": members} for title, members in found.items()]


def render(assets: Path, **values: Any) -> str:
    """Return index.html; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(assets),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(**values)


def _copy_assets(assets: Path, folder: Path) -> None:
    for path in sorted(assets.iterdir()):
        if path.suffix in (".js", ".css"):
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(plotly_script(), folder / "plotly.min.js")


def plotly_script() -> Path:
    """Return the path of plotly.js, minified, as the Python package brings it.

    Raises RfatlasError if the package is not installed.
    """
    package = importlib.util.find_spec("plotly")
    if package is None:
        raise RfatlasError("the package plotly is missing; pip install -r requirements.txt")
    return Path(package.submodule_search_locations[0]) / "package_data" / "plotly.min.js"

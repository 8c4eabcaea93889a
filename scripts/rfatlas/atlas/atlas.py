"""Stage `atlas`: a site to look at the channels of a run, which opens from disk with no network.

`results/<run>/atlas/index.html` needs nothing but the folder it lies in. A page that is opened from
disk may not fetch files, so the data are scripts that hand over JSON. `data/overview.js` comes at
once: layers, and what the columns mean (from docs/columns.md). The values come when they are asked
for: `data/column-<i>.js` of a column of the table, for the grid and the scatter plot, and
`data/passports-<layer>-<block>.js` of BLOCK channels with all their numbers, curves and top units;
pictures likewise. What the page says of a stage comes from the register of stages. What it does is
in page/; uPlot, which draws the scatter plot's axes, is in page/uplot/ as its authors publish it
(MIT licence).
"""

import base64
import json
import math
import re
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import jinja2
import numpy as np
import pandas as pd

from rfatlas import stages, statistics
from rfatlas.atlas import pictures
from rfatlas.files import store

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

#: The page: two templates; everything else there is copied.
PAGE = Path(__file__).with_name("page")
TEMPLATE, START = PAGE / "index.html.j2", PAGE / "start.html.j2"


# ---- what the columns mean


#: A row of docs/columns.md, texts; `section` is its heading, `stages` those named there. `pattern`
#: matches the names it explains (`<mode>` in a documented name is any word).
Column = namedtuple("Column", "pattern section stages meaning unit formula source")


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
            row._replace(
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


def _short(value: Any) -> Any:
    return _plain_value(float(value), _CURVE_DIGITS)


def about_columns(table: pd.DataFrame, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Return of each column of the table its name, kind, explanation, and how many channels have a
    value (`known`); of a choice also the values there are."""
    found = []
    for name, values in table.items():
        about = {"name": name, "kind": kind(values), **explain(name, columns)._asdict()}
        del about["pattern"]
        about["known"] = int(values.count())
        if about["kind"] == "choice":
            about["choices"] = sorted(values.dropna().unique().tolist())
        found.append(about)
    return found


def packed(values: pd.Series) -> dict[str, Any]:
    """Return the values of a column in few bytes, for a data script.

    Numbers are `numbers`, float64 with NaN for what is missing; others are `values`, each once, and
    `codes`, uint32, place in `values` plus 1, 0 for missing. Arrays are little-endian, in base64.
    """
    if kind(values) == "number":
        return {"numbers": _base64(values.to_numpy(float, na_value=np.nan), "<f8")}
    codes, found = pd.factorize(values)
    return {"values": plain_values(found), "codes": _base64(codes + 1, "<u4")}


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


def layer_measures(table: pd.DataFrame) -> dict[str, Any]:
    """Return what each layer has of MEASURES, as far as the table has their columns.

    `measures` are [title, column, filter]; `rows`, one per layer in network order, have for each
    [how many channels pass the filter, how many have a value], or the median; None where no channel
    has a value.
    """
    measures = [list(measure) for measure in MEASURES if measure[1] in table]
    layers = statistics.rows_by_layer(table).values()
    rows = [
        [_measure(layer[name].dropna(), asked) for _, name, asked in measures] for layer in layers
    ]
    return {"measures": measures, "rows": rows}


def _measure(known: pd.Series, asked: str | None) -> Any:
    if known.empty:
        return None
    if asked is None:
        return _short(known.median())
    operator, value = asked.split()
    if operator == "≤":
        passes = known <= float(value)
    else:
        passes = known.astype(bool) if value == "yes" else known.astype(str) == value
    return [int(passes.sum()), len(known)]


def report_card(properties: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """Return what the page shows of v1/properties.csv and v1/scores.csv: `titles` of the columns,
    and `rows`, one per layer in network order, of similarities from 0 to 1, or None. The first two
    columns are the scores of the run and of its random twin."""
    stated = scores[scores["stated"].astype(bool)].set_index("layer")
    compared = properties[properties["similarity"].notna()]
    titles = compared.groupby("property", sort=False)["title"].first()
    rows = []
    for layer, members in statistics.rows_by_layer(properties).items():
        found = members.set_index("property")["similarity"].reindex(titles.index)
        both = [np.nan, np.nan]
        if layer in stated.index:
            both = list(stated.loc[layer, ["score", "twin_score"]])
        rows.append(plain_values([*both, *found]))
    return {"titles": ["score", "score of the random twin", *titles], "rows": rows}


# ---- curves


def curves(files: Mapping[str, h5py.File | h5py.Group], channels: int) -> dict[str, Any]:
    """Return what passports draw of a layer, of those stages that `files` holds.

    Each is `values` by channel, None where a channel has none, and what they have in common. Curves
    have an `axis` (n,) and n values: `orientation` (degrees), `frequency` (cycles per pixel),
    `phase` (degrees) of the best grating; `size` (diameter in pixels) and `contrast`, with n values
    measured and n of a fit; `hue` (degrees in the DKL plane); `direction` of
    chromatic gratings (degrees, the plane's other half is the same); `axes`, with an `axis` of
    frequencies and n values for each of L+M, L-M, S-(L+M). `surface` has two axes, `orientation`
    and `frequency`, and the responses to all gratings as bytes, 255 for the largest, in base64.
    `losses` are `class_losses` in one `mode`.
    """
    found: dict[str, Any] = {}
    for stage, read in CURVES.items():
        if stage in files:
            found |= read(files[stage], channels)
    return found


def grating_curves(file: h5py.File, channels: int) -> dict[str, Any]:
    """Return the curves through each channel's own grating: what the indices were read from."""
    rows, best, tuned = file["channel"][:], file["best"][:], file["tuned"][:]
    answers = (best >= 0).all(1)
    each = np.arange(len(rows))
    phase = (file["best_response"][:] - file["blank"][:][:, None]).clip(0)
    surface = [
        _base64((255 * (one.clip(0) / one.max())).round(), "u1") if known else None
        for one, known in zip(tuned, answers, strict=True)
    ]
    axes = {name: _rounded(file[name][:]) for name in ("orientation", "frequency")}
    curve = partial(_curve, known=answers, rows=rows, channels=channels)
    found = {
        "orientation": curve(file["orientation"], tuned[each, :, best[:, 1]]),
        "frequency": curve(file["frequency"], tuned[each, best[:, 0]]),
        "phase": curve(file["f1_phase"], phase),
        "surface": {**axes, "values": _by_channel(surface, answers, rows, channels)},
    }
    for part, axis in (("size", "size_diameter"), ("contrast", "contrast")):
        if axis in file:
            pair = np.stack([file[f"{part}_response"][:], file[f"{part}_fit"][:]], 1)
            found[part] = curve(file[axis], pair)
    return found


def color_curves(file: h5py.File, channels: int) -> dict[str, Any]:
    """Return the tuning to hue, and to frequency along the three opponent axes at the orientation
    of the best chromatic grating."""
    rows, place = file["channel"][:], file["place"][:, 0]
    step = max(1, len(file["hue"]) // HUES)
    hues = (file["hue_response"][:] - file["blank"][:][:, None]).clip(0)[:, ::step]
    axes = file["tuned"][:, :3][np.arange(len(rows)), :, place]
    hue = _curve(file["hue"][::step], hues, hues.any(1), rows, channels)
    looks = (255 * file["hue_rgb"][:: 2 * step].clip(0, 1)).round().astype(int)
    hue["colours"] = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in looks]
    found = {"hue": hue, "axes": _curve(file["frequency"], axes, place >= 0, rows, channels)}
    if "direction_response" in file:
        answer = file["direction_response"][:]
        some = answer.max(1) > 0
        found["direction"] = _curve(file["direction"], answer, some, rows, channels)
    return found


def ablated_classes(file: h5py.File, channels: int) -> dict[str, Any]:
    """Return `losses` of a layer's channels in the first of MODES that it was ablated in, with the
    `mode`; nothing if it was not."""
    mode = next((mode for mode in MODES if f"{mode}/class_delta" in file), None)
    if mode is None:
        return {}
    change, rows = file[f"{mode}/class_delta"][:], file["channel"][:]
    images = np.bincount(file["label"][:], minlength=change.shape[1])
    losses = _by_channel(class_losses(change, images), np.full(len(rows), True), rows, channels)
    return {"losses": {"mode": mode, "values": losses}}


#: What reads the curves of a stage from its file of a layer.
CURVES = {"gratings": grating_curves, "color": color_curves, "ablation": ablated_classes}


def _curve(
    axis: np.ndarray, values: np.ndarray, known: np.ndarray, rows: np.ndarray, channels: int
) -> dict[str, Any]:
    shown = [_rounded(value) for value in values]
    return {"axis": _rounded(axis[:]), "values": _by_channel(shown, known, rows, channels)}


def _by_channel(values: Sequence, known: np.ndarray, rows: np.ndarray, channels: int) -> list:
    """Return a value per channel from one per row of a file: None where a channel has no row, or
    its row is not `known`."""
    each = [None] * channels
    for row, value, given in zip(rows, values, known, strict=True):
        each[row] = value if given else None
    return each


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
    units = [
        [
            [int(np.searchsorted(used, index)), int(labels[index]), _short(activation)]
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
        alike = not len(seen) or np.ptp(means[seen]) == 0
        bars.append([] if alike else [[int(i), _short(means[i])] for i in order])
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
        found.append([[int(i), _short(row[i]), int(images[i])] for i in losses + gains])
    return found


def matches(
    tables: Iterable[tuple[str, pd.DataFrame]], run: str, layer: str, channels: int
) -> list[list]:
    """Return of each channel of a layer those of other runs that it was matched with: [run,
    channel, correlation], once per run.

    `tables` are the tables matched.csv of the groups, each with the name of its reference in front.
    """
    found: list[dict[str, list]] = [{} for _ in range(channels)]
    for reference, table in tables:
        for row in table[table["layer"] == layer].dropna(subset=["correlation"]).itertuples():
            pair = {reference: int(row.channel), row.run: int(row.run_channel)}
            if run in pair:
                own = pair.pop(run)
                for other, channel in pair.items():
                    value = _short(row.correlation)
                    found[own].setdefault(other, [other, channel, value])
    return [list(each.values()) for each in found]


# ---- the site


def build(
    given: Mapping, params, folder: Path, log: Callable[[str], None] = lambda text: None
) -> None:
    """Write the atlas of a run into `folder`, from the files and settings of its rule; index.html
    comes last.

    `given` holds by stage its HDF5 files, one per layer or one for all. `params.stages` is what the
    page is told of each stage: `stages.pages`, and in `absent` why there is nothing of it. `log` is
    called with a line of progress per layer. Raises RfatlasError if a file is missing or unfinished
    or lacks a dataset.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    description = json.loads(Path(given.description).read_text(encoding="utf-8"))
    table = store.read_table(given.channels)
    for number, name in enumerate(table):
        write_script(data, f"column-{number:03d}", packed(table[name]))
    with (
        store.open(given.images, "images") as images,
        store.open(given.activations, "activations") as activations,
    ):
        layers = _write_layers(given, params, table, images, activations, folder, log)
        facts = {
            "images": len(images["names"]),
            "channels": len(table),
            "layers": len(layers),
            "top1": _top1(activations),
            "weights": str(description.get("weights_sha256", ""))[:12],
            "network": params.network,
        }
        class_names = [str(name) for name in images.attrs["class_names"]]
    overview = {"classNames": class_names, "layers": layers, **_about(given, params, table, layers)}
    write_script(data, "overview", overview)
    templates = shutil.ignore_patterns("*.j2")
    shutil.copytree(
        PAGE, folder, ignore=templates, copy_function=shutil.copyfile, dirs_exist_ok=True
    )
    page = render(TEMPLATE, run=params.run, facts=facts, runs=params.runs)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _write_layers(
    given: Mapping,
    params,
    table: pd.DataFrame,
    images: h5py.File,
    activations: h5py.File,
    folder: Path,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Write pictures and passports of all layers, and return what the overview says of each."""
    names, labels = images["names"].asstr()[:], images["labels"][:]
    matched = list(zip(params.references, map(store.read_table, given.matched), strict=True))
    layers = []
    for number, (name, rows) in enumerate(statistics.rows_by_layer(table).items()):
        first, channels = int(rows.index[0]), len(rows)
        image, value, yx = (
            activations[f"{name}/{params.source}_{what}"][:, : pictures.PATCHES]
            for what in ("image", "value", "yx")
        )
        means = activations.get(f"{name}/class_mean")
        with ExitStack() as stack:
            files = _open(given, params.stages, name, stack)
            tiles = pictures.tiles(files, image, yx)
            layout, missing = pictures.write(tiles, channels, folder, number)
            passports = {
                "values": list(zip(*(plain_values(rows[each]) for each in rows), strict=True)),
                "missing": missing,
                **curves(files, channels),
                "classes": None if means is None else class_bars(means[:]),
                "matches": matches(matched, params.run, name, channels),
            }
        for block, begin in enumerate(range(0, channels, BLOCK)):
            part = slice(begin, begin + BLOCK)
            some = {key: _part(entry, part) for key, entry in passports.items()}
            some["top"] = top_units(image[part], value[part], names, labels)
            some["first"] = first + begin
            write_script(folder / "data", f"passports-{number:02d}-{block:02d}", some)
        layers.append({"name": name, "first": first, "channels": channels, **layout})
        log(f"{name}: {channels} channels, {len(tiles)} pictures each")
    return layers


def _about(
    given: Mapping, params, table: pd.DataFrame, layers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what the page says of a run as a whole."""
    text = Path(given.columns).read_text(encoding="utf-8")
    return {
        "run": params.run,
        "block": BLOCK,
        "thumbnails": {
            kind: title
            for kind, title in pictures.THUMBNAILS.items()
            if any(kind in layer["sprites"] for layer in layers)
        },
        "stages": list(params.stages),
        "columns": about_columns(table, read_columns(text)),
        "byLayer": layer_measures(table),
        "card": report_card(*map(store.read_table, given.card)) if given.card else None,
        "references": read_references(text),
        "findings": _claims(given.findings) if given.findings else None,
        "runs": list(params.runs),
    }


def _open(
    given: Mapping, told: Sequence[Mapping[str, Any]], layer: str, stack: ExitStack
) -> dict[str, h5py.File | h5py.Group]:
    """Open what the stages have of a layer: a file of its own, or a group in one of all layers."""
    found: dict[str, h5py.File | h5py.Group] = {}
    for stage in (one["name"] for one in told):
        whole = stages.BY_NAME[stage].scope == "run"
        for path in given.get(stage, []):
            if whole or Path(path).stem == layer:
                file = stack.enter_context(store.open(path, stage))
                found[stage] = file[layer] if whole else file
    return found


def _part(entry: Any, part: slice) -> Any:
    """Return what passports hold of all channels of a layer for some of them."""
    if isinstance(entry, Mapping):
        return {**entry, "values": entry["values"][part]}
    return None if entry is None else entry[part]


def _claims(path: str) -> list[dict[str, Any]]:
    """Return of each claim of findings.json what the pages say of it; `lines` are the rows of the
    tables behind it, [table, line]."""
    claims = json.loads(Path(path).read_text(encoding="utf-8"))["claims"]
    return [
        {
            **{key: claim[key] for key in ("claim", "question", "sentence", "missing")},
            "lines": [[row["table"], row["line"]] for row in claim["rows"]],
        }
        for claim in claims
    ]


def _top1(activations: h5py.File) -> str:
    """Return the accuracy of a network, for the heads of pages; empty if it has none."""
    value = activations["output"].attrs.get("top1") if "output" in activations else None
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def write_script(folder: Path, name: str, value: Any) -> None:
    """Write `<name>.js`, a script that hands a JSON value to `rfatlas.receive` of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    (folder / f"{name}.js").write_text(f'rfatlas.receive("{name}",{text});\n', encoding="ascii")


def start_page(runs: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> str:
    """Return the page that leads to the atlases of all runs.

    `runs` holds of each run `name`, `network`, `weights`, `dataset`, the path of its `activations`,
    how many `layers` and `channels` are analysed, whether it has an `atlas` and `findings`, what
    these say (`claims`, sentences), and where in its folder a `picture` may be;
    `groups` the runs that are compared, by the name of their group.
    """
    shown = []
    for run in runs:
        with store.open(run["activations"], "activations") as file:
            shown.append({**run, "top1": _top1(file)})
    return render(START, runs=shown, groups=groups)


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

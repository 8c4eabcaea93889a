"""Stage `findings`: the paper's three claims about one run, and how much it is like V1, as numbers
that can be quoted.

Kobayashi & Shouno 2020 found orientation-selective neurons, double-opponent neurons, and inactive
first-layer neurons that matter for classification. Each claim is answered from the rows of tables
that other stages wrote, with intervals and the random twin, and in one sentence; each row
says which line of its table it is. Which layer is most like macaque V1 is told in the same way.
"""

import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

#: The tables of a run behind the claims, by the name under which they are handed in.
TABLES = {
    "selective": "orientation/selective.csv",
    "counts": "opponency/counts.csv",
    "confusion": "opponency/confusion.csv",
    "inactive": "inactive_first_layer.csv",
    "scores": "v1/scores.csv",
}

#: What a fraction is beside its twin's, by Newcombe's interval of their difference.
ABOVE, BELOW, ALIKE, UNKNOWN = "above", "below", "not told apart", "unknown"

_NOISE, _SILENT = "with a field of noise", "driven by nothing shown"

_MISSING = "no {table}: the stage {stage} is off or has nothing to say of this run"


def orientation(selective: pd.DataFrame | None) -> dict[str, Any]:
    """Answer claim 1, orientation-selective units per layer, from orientation/selective.csv.

    Only the rows of the rule count, not those of the other thresholds. Returns a claim: `claim`,
    `question`, `sentence`, `rows`, and `missing`, why there is no answer, else None.
    """
    question = "Are there orientation-selective channels, and more than with random weights?"
    if selective is None or selective.empty:
        return _unanswered("orientation_selective", question, "selective", "gratings")
    ruled = selective[selective["rule"].astype(bool)]
    rows = _rows(ruled, "selective", versus_twin=True)
    threshold = rows[0]["osi_threshold"]
    rule = f"OSI of at least {threshold:g} for luminance or colour and a defined bandwidth"
    sentence = _fractions(rows, "selective", "orientation-selective", rule)
    first = rows[0]
    left_out = _left_out(first, noise=_NOISE, no_response=_SILENT, weak="answering weakly")
    sentence += (
        f" In {first['layer']}, {first['luminance']} are tuned for luminance alone, "
        f"{first['color']} for colour alone, {first['both']} for both; not counted: {left_out}"
    )
    if first["gabor_known"]:
        sentence += (
            f" An oriented Gabor function fits the mean gradients of {first['gabor_oriented']} of "
            f"{first['gabor_known']} better than noise"
        )
        if first["twin_gabor_known"]:
            sentence += (
                f", with random weights {first['twin_gabor_oriented']} of "
                f"{first['twin_gabor_known']}"
            )
        sentence += "."
    return _claim("orientation_selective", question, rule, sentence, rows)


def opponency(counts: pd.DataFrame | None, confusion: pd.DataFrame | None) -> dict[str, Any]:
    """Answer claim 2, double-opponent units per layer by the cone rule and by Harris' rule.

    From opponency/counts.csv and opponency/confusion.csv. Returns a claim as `orientation` does;
    `rows` are those of the cone rule and of Harris' rule, `agreement` one row per layer.
    """
    question = "Are there double-opponent channels, by which rule, and more than by chance?"
    if counts is None or counts.empty:
        return _unanswered("double_opponent", question, "counts", "color")
    asked = {"cone": "double_opponent", "harris": "double"}
    wanted = (counts["class"] == counts["rule"].map(asked)) & counts["depth"].notna()
    rows = _rows(counts[wanted], "counts", versus_twin=True)
    cone = [row for row in rows if row["rule"] == "cone"]
    harris = {row["layer"]: row for row in rows if row["rule"] == "harris"}
    sentence = _fractions(cone, "count", "double-opponent", "cone rule")
    agreement = []
    if confusion is not None:
        pairs = confusion[(confusion["rule"] == "harris") & confusion["depth"].notna()]
        agreement = _rows(pairs.drop_duplicates("layer"), "confusion")
        agreement = [
            {key: row[key] for key in ("layer", "both", "agreement", "kappa", "table", "line")}
            for row in agreement
        ]
    first = cone[0]
    own = counts[(counts["rule"] == "cone") & (counts["layer"] == first["layer"])]
    excluded = {
        "noise": int(own.loc[own["class"] == "noise", "count"].sum()),
        "saturated": first["saturated"],
        "unresponsive": first["channels"] - first["responsive"] - first["saturated"],
    }
    left_out = _left_out(
        excluded, noise=_NOISE, saturated="saturated by all stimuli", unresponsive=_SILENT
    )
    sentence += f" Not counted in {first['layer']}: {left_out}"
    if first["layer"] in harris:
        other = harris[first["layer"]]
        sentence += (
            f" By Harris' rule {other['count']} of {other['responsive']} are in {first['layer']}"
        )
        met = [row for row in agreement if row["layer"] == first["layer"] and row["both"]]
        if met:
            share = 100 * met[0]["agreement"]
            sentence += f"; the two rules agree on {share:.0f} % of its channels"
        sentence += "."
    rule = "cone rule, by sensitivities, and Harris' rule"
    return _claim("double_opponent", question, rule, sentence, rows, agreement=agreement)


def inactive(inactive: pd.DataFrame | None) -> dict[str, Any]:
    """Answer claim 3, what the network loses without its inactive first-layer channels.

    From inactive_first_layer.csv, whose sentence is taken over as it is. Returns a claim as
    `orientation` does; `conclusion` maps each layer to what matters: "none", "signal", "constant",
    "signal and constant", "unknown" or "no channel is inactive".
    """
    question = "Do inactive first-layer channels matter: by their signal, or by a constant alone?"
    if inactive is None or inactive.empty:
        return _unanswered("inactive_first_layer", question, "inactive", "ablation_groups")
    rule = "channels.inactive_norm"
    sentence = " ".join(filter(None, inactive["sentence"].dropna()))
    rows = _rows(inactive.drop(columns=["sentence"]), "inactive")
    conclusion = dict(inactive.groupby("layer", sort=False)["conclusion"].first())
    return _claim("inactive_first_layer", question, rule, sentence, rows, conclusion=conclusion)


def v1_like(scores: pd.DataFrame | None) -> dict[str, Any]:
    """Say which layer is most like macaque V1, from v1/scores.csv, and on other scales.

    Returns a claim as `orientation` does; `rows` are those of the stated scale.
    """
    question = "Which layer is most like macaque V1, and more than with random weights?"
    if scores is None or scores.empty:
        return _unanswered("v1_like", question, "scores", "v1")
    rows = _rows(scores[scores["stated"].astype(bool)], "scores", versus_twin=True)
    best = max(rows, key=lambda row: row["score"])
    rule = "mean over properties of 1 - KS distance, as a share of its ceiling"
    sentence = (
        f"{best['layer']} is most like macaque V1: {best['score']:.2f} of 1 (95 % interval "
        f"{best['lo']:.2f} to {best['hi']:.2f}) over {best['properties']} properties, with "
        f"{best['pixels_per_degree']:g} pixels per degree"
    )
    if best["difference"] is not None:
        more = f"{abs(best['difference']):.2f} {'more' if best['difference'] >= 0 else 'less'}"
        sentence += (
            f"; {more} than with random weights ({best['difference_lo']:+.2f} to "
            f"{best['difference_hi']:+.2f})".replace("-", "−")
        )
    winners = scores.loc[scores.groupby("pixels_per_degree")["score"].idxmax()]
    if len(winners) > 1:
        runs = (winners["layer"] != winners["layer"].shift()).cumsum()
        parts = []
        for _, some in winners.groupby(runs):
            low, high = (f"{some['pixels_per_degree'].iloc[end]:g}" for end in (0, -1))
            span = low if low == high else f"{low} to {high}"
            parts.append(f"{some['layer'].iloc[0]} at {span}")
        sentence += f". Of the scales that were tried, it is {_listing(parts)} pixels per degree"
    return _claim("v1_like", question, rule, f"{sentence}.", rows)


def collect(
    run: str,
    description: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame | None],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all findings of a run, JSON-ready: NaN becomes None.

    `description` says of which network and data the findings are, and is taken over as `of`;
    `tables` go by the names of `TABLES`, None for one that there is not; `warnings` say what is
    doubtful about the run's labels, a line each.
    """
    return {
        "run": run,
        "of": dict(description),
        "warnings": list(warnings),
        "claims": [
            orientation(tables.get("selective")),
            opponency(tables.get("counts"), tables.get("confusion")),
            inactive(tables.get("inactive")),
            v1_like(tables.get("scores")),
        ],
        "source": "Kobayashi & Shouno 2020, arXiv 2006.01645",
    }


def answers(findings: Mapping[str, Any]) -> list[str]:
    """Return the gist of each answer in the findings of `collect`: its first sentence, of inactive
    channels also what is lost without them."""
    said = []
    for claim in findings["claims"]:
        sentences = re.split(r"(?<=\.)\s", claim["sentence"])
        said.append(" ".join(sentences[: 1 + (claim["claim"] == "inactive_first_layer")]))
    return [each for each in said if each]


def told(results: Path, width: int) -> str:
    """Return what a folder of results has found, for a terminal of `width` columns, and where to
    look."""
    lines = []
    for file in sorted(results.glob("*/findings.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if said := answers(found):
            lines += [f"What {found['run']} shows:"]
            lines += [
                textwrap.fill(each, width, initial_indent="* ", subsequent_indent="  ")
                for each in said
            ]
    pages = [*sorted(results.glob("*/atlas/index.html")), results / "report.html"]
    pages.append(results / "index.html")
    lines += ["Open in a browser:", *(f"  {page.resolve()}" for page in pages if page.is_file())]
    return "\n".join(lines)


def page(findings: Mapping[str, Any], template: Path) -> str:
    """Return the findings of `collect` as one HTML page; names and sentences are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = _percent
    environment.filters["points"] = _points
    tables: dict[str, dict[int, Mapping[str, Any]]] = {}
    for claim in findings["claims"]:
        for row in [*claim["rows"], *claim.get("agreement", ())]:
            tables.setdefault(row["table"], {})[row["line"]] = row
    listed = {table: [rows[line] for line in sorted(rows)] for table, rows in tables.items()}
    return environment.get_template(template.name).render(**findings, tables=listed)


def _claim(
    claim: str, question: str, rule: str, sentence: str, rows: list[dict], **more: Any
) -> dict[str, Any]:
    known = {"claim": claim, "question": question, "rule": rule, "sentence": sentence}
    return {**known, "rows": rows, "missing": None, **more}


def _unanswered(claim: str, question: str, table: str, stage: str) -> dict[str, Any]:
    why = _MISSING.format(table=TABLES[table], stage=stage)
    return _claim(claim, question, "", "", [], missing=why)


def _rows(table: pd.DataFrame, name: str, versus_twin: bool = False) -> list[dict[str, Any]]:
    """The rows of a table, each with the table and the line that it is; the header is line 1."""
    found = []
    for index, row in zip(table.index, table.to_dict("records"), strict=True):
        plain = {str(key): _plain(value) for key, value in row.items()}
        plain |= {"table": TABLES[name], "line": int(index) + 2}
        if versus_twin:
            plain["versus_twin"] = _beside(plain["difference_lo"], plain["difference_hi"])
        found.append(plain)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _beside(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return UNKNOWN
    return ABOVE if low > 0 else BELOW if high < 0 else ALIKE


def _fractions(rows: Sequence[Mapping[str, Any]], count: str, what: str, rule: str) -> str:
    """Say how many channels of the first layer are something, and in which layers more are than
    in the twin."""
    first = rows[0]
    if first["responsive"]:
        sentence = (
            f"In {first['layer']}, {first[count]} of {first['responsive']} responsive channels are "
            f"{what} ({_percent(first['fraction'])}, 95 % interval {_percent(first['lo'])} to "
            f"{_percent(first['hi'])}; {rule})"
        )
    else:
        sentence = f"In {first['layer']} no channel responds"
    known = [row for row in rows if row["versus_twin"] != UNKNOWN]
    if not known:
        return f"{sentence}; there is no random twin to compare with."
    if first["versus_twin"] != UNKNOWN:
        sentence += f", against {_percent(first['twin_fraction'])} with random weights"
    parts = []
    for word, relation in ((ABOVE, "higher than"), (BELOW, "lower than")):
        layers = [row["layer"] for row in known if row["versus_twin"] == word]
        if layers:
            parts.append(f"{relation} the twin's in {_listing(layers)}")
    told = " and ".join(parts) or "not told apart from the twin's in any layer"
    return f"{sentence}. Over {len(known)} layers the fraction is {told}."


def _left_out(counts: Mapping[str, Any], **reasons: str) -> str:
    """Say how many channels were left out of a count, and why."""
    parts = [f"{counts[name]} {why}" for name, why in reasons.items() if counts[name]]
    return f"{_listing(parts) if parts else 'none'}."


def _listing(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.1f}".replace("-", "−")


if __name__ == "__main__":
    print(told(Path(sys.argv[1]), shutil.get_terminal_size().columns))

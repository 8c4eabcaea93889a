"""Findings: the claims, told from invented tables whose answers are known."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rfatlas.files import store
from rfatlas.statistics import newcombe, wilson
from rfatlas.tables import findings, orientation

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "workflow" / "findings" / "findings.html"


def channels(osi: dict[str, list[float]]) -> pd.DataFrame:
    """A table of channels with these osi by layer; NaN for one that nothing drives."""
    rows = [
        {"layer": layer, "depth": depth, "channel": channel, "osi": value, "bandwidth_deg": 20.0}
        for depth, (layer, values) in enumerate(osi.items())
        for channel, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def selective():
    """30 of 40 selective in conv1 (twin 5 of 40), 10 of 40 in layer1.0 (twin 12 of 40)."""
    own = channels({"conv1": [0.9] * 30 + [0.1] * 10, "layer1.0": [0.9] * 10 + [0.1] * 30})
    twin = channels({"conv1": [0.9] * 5 + [0.1] * 35, "layer1.0": [0.9] * 12 + [0.1] * 28})
    return orientation.selective(own, [0.3, 0.7], 0.5, twin, "random")


def counted(layer: str, depth: int, rule: str, name: str, count: int, n: int, twins=None) -> dict:
    """A row of opponency/counts.csv."""
    low, high = map(float, wilson(count, n))
    row = {"layer": layer, "depth": depth, "rule": rule, "class": name, "channels": n + 3}
    row |= {"saturated": 1 if rule == "cone" else pd.NA}
    row |= {"responsive": n, "count": count, "fraction": count / n, "lo": low, "hi": high}
    row |= {"twin": "", "twin_fraction": np.nan, "difference": np.nan}
    row |= {"difference_lo": np.nan, "difference_hi": np.nan}
    if twins is not None:
        low, high = map(float, newcombe(count, n, twins, n))
        row |= {"twin": "random", "twin_fraction": twins / n, "difference": (count - twins) / n}
        row |= {"difference_lo": low, "difference_hi": high}
    return row


def opponency_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    counts = [
        counted(layer, depth, rule, name, count, 50, twins)
        for layer, depth, twins in (("conv1", 0, 2), ("maxpool", 1, 24), ("all layers", pd.NA, 9))
        for rule, names, of in (
            ("cone", ["non_opponent", "double_opponent", "noise"], (25, 20, 5)),
            ("harris", ["double"], (18,)),
        )
        for name, count in zip(names, of, strict=True)
    ]
    confusion = pd.DataFrame(
        {
            "layer": ["conv1", "conv1", "maxpool", "conv1"],
            "depth": pd.array([0, 0, 1, 0], "Int64"),
            "rule": ["harris", "harris", "harris", "energy"],
            "both": [50, 50, 50, 50],
            "agreement": [0.8, 0.8, 0.5, 0.1],
            "kappa": [0.6, 0.6, np.nan, 0.1],
        }
    )
    return pd.DataFrame(counts), confusion


def inactive_table() -> pd.DataFrame:
    row = {
        "layer": "conv1", "channels": "all", "channel": pd.NA, "compared_with": "intact",
        "delta_top1": -0.03, "delta_top1_lo": -0.05, "delta_top1_hi": -0.01, "p": 0.002,
        "n_controls": 20, "control_top1": -0.2, "p_more_top1": 0.9, "conclusion": "constant",
        "sentence": "",
    }  # fmt: skip
    rows = [row | {"mode": mode} for mode in ("zero", "mean")]
    rows[0]["sentence"] = "15 of 64 channels of conv1 are inactive."
    return pd.DataFrame(rows)


def scores_table() -> pd.DataFrame:
    """Two layers on three scales, of which layer1.0 is best on the last."""
    rows = [
        {
            "layer": layer, "depth": depth, "pixels_per_degree": scale, "stated": scale == 28,
            "channels": 64, "properties": 12, "score": score, "lo": score - 0.05,
            "hi": score + 0.05, "twin": "random", "twin_score": 0.6, "difference": score - 0.6,
            "difference_lo": score - 0.68, "difference_hi": score - 0.52,
        }
        for depth, (layer, found) in enumerate(
            {"conv1": (0.7, 0.75, 0.5), "layer1.0": (0.5, 0.6, 0.55)}.items()
        )
        for scale, score in zip((14, 28, 56), found, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_rows_are_those_of_the_rule_and_name_their_line(selective, tmp_path):
    path = tmp_path / "selective.csv"
    store.write_table(selective, path)
    claim = findings.orientation(store.read_table(path))
    assert [row["layer"] for row in claim["rows"]] == ["conv1", "layer1.0"]
    lines = path.read_text().splitlines()
    for row in claim["rows"]:
        fields = dict(zip(lines[0].split(","), lines[row["line"] - 1].split(","), strict=True))
        assert fields["layer"] == row["layer"] and fields["rule"] == "True"
        assert float(fields["fraction"]) == pytest.approx(row["fraction"])
        assert row["table"] == "orientation/selective.csv"


def test_a_fraction_is_above_the_twins_only_if_the_interval_says_so(selective):
    claim = findings.orientation(selective)
    assert [row["versus_twin"] for row in claim["rows"]] == ["above", "not told apart"]
    low, high = wilson(30, 40)
    assert claim["sentence"] == (
        "In conv1, 30 of 40 responsive channels are orientation-selective (75 %, 95 % interval "
        f"{100 * low:.0f} % to {100 * high:.0f} %; OSI of at least 0.5 for luminance or colour and "
        "a defined bandwidth), against 12 % with random weights. Over 2 layers the fraction is "
        "higher than the twin's in conv1. In conv1, 30 are tuned for luminance alone, 0 for colour "
        "alone, 0 for both; not counted: none."
    )


def test_below_the_twin_and_without_one():
    low = channels({"conv1": [0.1] * 40, "layer1.0": [0.9] * 40})
    high = channels({"conv1": [0.9] * 40, "layer1.0": [0.9] * 40})
    claim = findings.orientation(orientation.selective(low, [], 0.5, high, "random"))
    assert claim["rows"][0]["versus_twin"] == "below"
    assert "lower than the twin's in conv1." in claim["sentence"]
    alone = findings.orientation(orientation.selective(low, [], 0.5))
    assert {row["versus_twin"] for row in alone["rows"]} == {"unknown"}
    assert "there is no random twin to compare with." in alone["sentence"]


def test_a_layer_that_nothing_drives():
    claim = findings.orientation(orientation.selective(channels({"conv1": [np.nan] * 4}), [], 0.5))
    assert claim["sentence"].startswith("In conv1 no channel responds")
    assert claim["sentence"].endswith("not counted: 4 driven by nothing shown.")
    assert claim["rows"][0]["fraction"] is None


def test_opponency_takes_both_rules_layer_by_layer():
    claim = findings.opponency(*opponency_tables())
    found = [(row["layer"], row["rule"], row["count"]) for row in claim["rows"]]
    assert found == [
        ("conv1", "cone", 20),
        ("conv1", "harris", 18),
        ("maxpool", "cone", 20),
        ("maxpool", "harris", 18),
    ]
    assert [(row["layer"], row["agreement"]) for row in claim["agreement"]] == [
        ("conv1", 0.8),
        ("maxpool", 0.5),
    ]
    assert "20 of 50 responsive channels are double-opponent (40 %" in claim["sentence"]
    assert (
        "higher than the twin's in conv1. Not counted in conv1: 5 with a field of noise, 1 "
        in (claim["sentence"])
    )
    assert claim["sentence"].endswith(
        "By Harris' rule 18 of 50 are in conv1; the two rules agree on 80 % of its channels."
    )


def test_inactive_channels_are_told_as_the_table_tells_them():
    claim = findings.inactive(inactive_table())
    assert claim["sentence"] == "15 of 64 channels of conv1 are inactive."
    assert claim["conclusion"] == {"conv1": "constant"}
    assert [row["mode"] for row in claim["rows"]] == ["zero", "mean"]


def test_the_most_v1_like_layer_is_told_with_its_twin_and_its_scales():
    claim = findings.v1_like(scores_table())
    assert claim["sentence"] == (
        "conv1 is most like macaque V1: 0.75 of 1 (95 % interval 0.70 to 0.80) over 12 properties, "
        "with 28 pixels per degree; 0.15 more than with random weights (+0.07 to +0.23). Of the "
        "scales that were tried, it is conv1 at 14 to 28 and layer1.0 at 56 pixels per degree."
    )
    assert [row["layer"] for row in claim["rows"]] == ["conv1", "layer1.0"]
    assert [row["versus_twin"] for row in claim["rows"]] == ["above", "not told apart"]
    alone = (
        scores_table()
        .query("stated")
        .assign(difference=np.nan, difference_lo=np.nan, difference_hi=np.nan, twin_score=np.nan)
    )
    assert findings.v1_like(alone)["sentence"].endswith("with 28 pixels per degree.")
    less = scores_table().query("stated").assign(difference=-0.2, difference_lo=-0.3)
    assert "; 0.20 less than with random weights (−0.30 to" in findings.v1_like(less)["sentence"]


def test_a_stage_that_is_off_is_said_not_hidden():
    found = findings.collect("demo", {}, dict.fromkeys(findings.TABLES))
    assert [claim["sentence"] for claim in found["claims"]] == [""] * 4
    assert "orientation/selective.csv: the stage gratings" in found["claims"][0]["missing"]
    page = findings.page(found, TEMPLATE)
    assert page.count("Not answered:") == 4


def test_json_has_no_nan_and_keeps_every_number(selective):
    counts, confusion = opponency_tables()
    tables = {"selective": selective, "counts": counts, "confusion": confusion}
    tables |= {"inactive": inactive_table(), "scores": scores_table()}
    found = findings.collect("demo", {"network": "n"}, tables)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert again["claims"][1]["agreement"][1]["kappa"] is None
    assert again["claims"][0]["rows"][0]["difference"] == pytest.approx(25 / 40)


def test_the_page_links_each_row_and_escapes_names(selective):
    selective = selective.replace({"layer": {"conv1": "<script>alert(1)</script>"}})
    counts, confusion = opponency_tables()
    tables = {"selective": selective, "counts": counts, "confusion": confusion}
    tables |= {"inactive": inactive_table(), "scores": scores_table()}
    found = findings.collect("<b>run</b>", {"network": "a&b"}, tables, ["<i>wrong</i> labels"])
    page = findings.page(found, TEMPLATE)
    assert found["warnings"] == ["<i>wrong</i> labels"] and "Warning: &lt;i&gt;wrong" in page
    assert "<script" not in page and "<b>" not in page and "a&amp;b" in page
    rows = sum(len(claim["rows"]) + len(claim.get("agreement", [])) for claim in found["claims"])
    targets = re.findall(r'href="#([^"]+:[0-9]+)"', page)
    assert len(set(targets)) == rows
    assert all(page.count(f'<tr id="{target}">') == 1 for target in targets)
    cells = re.findall(r"<td>(.*?)</td>", page.split('<section id="tables">')[0], re.DOTALL)
    assert not [cell for cell in cells if re.match(r"[+−]?\d", cell)], "each number is a link"
    line = found["claims"][0]["rows"][0]["line"]
    assert f'href="#orientation/selective.csv:{line}"' in page
    assert page.count(f'id="orientation/selective.csv:{line}"') == 1
    assert '<a href="orientation/selective.csv">' in page
    assert "−3.0" in page and "nan" not in re.sub("findings|luminance", "", page.lower())


def test_the_terminal_is_told_the_gist_and_where_to_look(selective, tmp_path):
    inactive = pd.DataFrame({"layer": ["conv1"], "conclusion": ["signal"]})
    inactive["sentence"] = [
        "2 of 64 are inactive. Without them 1.5 points are lost. By the loss, 3."
    ]
    tables = {"selective": selective, "inactive": inactive}
    found = findings.collect("demo", {}, tables)
    folder = tmp_path / "demo"
    (folder / "atlas").mkdir(parents=True)
    (folder / "findings.json").write_text(json.dumps(found))
    for page in (folder / "atlas" / "index.html", tmp_path / "index.html"):
        page.touch()
    told = findings.told(tmp_path, 60).splitlines()
    assert max(map(len, told[:-3])) <= 60
    text = " ".join(line.strip() for line in told)
    assert text.startswith("What demo shows: * In conv1, 30 of 40 responsive channels are")
    assert (
        "with random weights. * 2 of 64 are inactive. Without them 1.5 points are lost. Open"
        in text
    )
    assert [line.strip() for line in told[-2:]] == [
        str(tmp_path / "demo" / "atlas" / "index.html"),
        str(tmp_path / "index.html"),
    ]

"""Figures of networks side by side: legible at any size, and what is drawn was counted."""

import itertools

import numpy as np
import pandas as pd
import pytest
from drawing import by_script
from legible import cut_off, overlaps
from matplotlib.colors import to_hex

from rfatlas.figures import figures_compare as drawn
from rfatlas.figures import style
from rfatlas.files import store
from rfatlas.tables import compare


def network(layers: int) -> list[str]:
    names = ["conv1", "maxpool", *(f"layer{1 + i // 6}.{i % 6}" for i in range(layers))]
    return names[:layers]


def invented(runs: dict[str, list[str]], seed: int = 0, off: tuple = ()) -> dict[str, pd.DataFrame]:
    """Tables as the stage writes them, of runs with these layers; numbers from a seed."""
    random = np.random.default_rng(seed)
    reference = next(iter(runs))
    tables = {
        "runs": pd.DataFrame(
            [
                dict(zip(compare.RUNS, row, strict=True))
                for row in (
                    (run, run == reference, "f", "w", 1, 1, 100, 0.6, 0.5, 0.7, 0.9, 0.8, 0.95, 1.0)
                    + ((np.nan,) * 7 if run == reference else (-0.1, -0.2, 0.05, 0.1, 15, 5, 0.7))
                    for run in runs
                )
            ]
        )
    }
    places = [(run, layer, depth) for run in runs for depth, layer in enumerate(runs[run])]

    def three(high):
        return np.sort(random.uniform(0.01, high, 3))

    rows = [
        (*place, name, 10, 5, *three(1)[[1, 0, 2]], 10, 5, 0.5, 0, -0.1, 0.1)
        for place in places
        for name in compare.PROPERTIES
        if name not in off
    ]
    tables["fractions"] = pd.DataFrame(rows, columns=list(compare.FRACTIONS))
    rows = [
        (*place, name, 10, *three(300 if name in ("rf_size", "erf_sigma") else 1), 10, 1, 0, 0.5)
        for place in places
        for name in compare.QUANTITIES
        if name not in off
    ]
    tables["quantities"] = pd.DataFrame(rows, columns=list(compare.QUANTILES))
    pairs, summary = [], []
    for run in list(runs)[1:]:
        for depth, layer in enumerate(runs[reference]):
            if layer in runs[run]:
                values = random.uniform(-0.1, 1, 12)
                pairs += [(run, layer, k, k, value, k, value) for k, value in enumerate(values)]
                quartiles = np.quantile(values, (0.25, 0.5, 0.75))
                share = np.mean(values >= 0.5)
                summary.append((run, layer, depth, 12, 12, 12, *quartiles, share, 0.05, 0.0))
    tables["matched"] = pd.DataFrame(pairs, columns=list(compare.MATCHED))
    tables["matching"] = pd.DataFrame(summary, columns=list(compare.MATCHING))
    rows = [
        (*a, *b, 1000, 5, 5, 1.0 if a == b else random.random(), 0.5, 0.1, random.random(), 0.1)
        for a, b in itertools.combinations_with_replacement(places, 2)
    ]
    tables["similarity"] = pd.DataFrame(rows, columns=list(compare.SIMILARITY))
    return tables


def figures(tables: dict[str, pd.DataFrame], runs: list[str]) -> dict:
    return {
        "accuracy": drawn.accuracy(tables["runs"], "demo"),
        "fractions": drawn.fractions(tables["fractions"], "demo", runs),
        "quantities": drawn.quantities(tables["quantities"], "demo", runs),
        "matched": drawn.matched(tables["matching"], tables["matched"], "demo", runs[0], runs),
        "cka": drawn.similarity(tables["similarity"], "demo", runs, "cka"),
        "svcca": drawn.similarity(tables["similarity"], "demo", runs, "svcca"),
    }


GROUPS = {
    "two small": {"demo": network(2), "demo_random": network(2)},
    "three": {"demo": network(4), "demo_plain": network(4), "demo_random": network(4)},
    "deep": {"resnet34": network(18), "plainnet34": network(18)},
    "eight": {"demo": network(8), "demo_random": network(8)},
    "seeds": {f"seed_{k}": network(2) for k in range(5)},
    "unlike": {"a": ["conv1", "layer1.0"], "b": ["stem", "conv1", "layer1.0", "layer1.1"]},
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_text_can_be_read(group):
    for name, figure in figures(invented(GROUPS[group]), list(GROUPS[group])).items():
        figure.set_dpi(style.DPI)
        assert overlaps(figure) == [] and cut_off(figure) == [], name


def test_stages_that_were_off_leave_panels_out():
    group = GROUPS["two small"]
    off = ("orientation_selective", "opponent", "double_opponent", "osi", "erf_sigma")
    made = figures(invented(group, off=off), list(group))
    assert [axes.get_ylabel() for axes in made["fractions"].axes] == ["inactive"]
    labels = [axes.get_ylabel() for axes in made["quantities"].axes]
    assert labels[0] == drawn.QUANTITIES["erf_sigma"], "the theoretical size is known in any case"
    assert drawn.QUANTITIES["osi"] not in labels
    for name, figure in made.items():
        figure.set_dpi(style.DPI)
        assert overlaps(figure) == [] and cut_off(figure) == [], name


def test_without_labels_and_with_nothing_in_common_something_is_drawn():
    group = {"a": ["conv1"], "b": ["stem"]}
    tables = invented(group)
    tables["runs"].loc[:, "top1":] = np.nan
    made = figures(tables, list(group))
    for figure in made.values():
        figure.canvas.draw()
    texts = [text.get_text() for text in made["accuracy"].axes[0].child_axes[0].get_yticklabels()]
    assert texts == ["reference", "no labels"]


def test_layers_stand_after_those_that_they_follow():
    rows = pd.DataFrame(
        [
            (run, layer, depth)
            for run, layers in {
                "a": ["conv1", "layer1.0", "layer2.0"],
                "b": ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"],
                "c": ["stem", "conv1"],
            }.items()
            for depth, layer in enumerate(layers)
        ],
        columns=["run", "layer", "depth"],
    )
    expected = ["stem", "conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert drawn.layer_order(rows, ["a", "b", "c"]) == expected
    assert drawn.layer_order(rows.sample(frac=1, random_state=0), ["b", "a", "c"]) == expected


def test_marks_and_bars_are_those_of_the_table():
    group = GROUPS["unlike"]
    tables = invented(group)
    figure = drawn.fractions(tables["fractions"], "demo", list(group))
    axes = next(one for one in figure.axes if one.get_ylabel() == "inactive")
    rows = tables["fractions"].query("property == 'inactive'")
    order = ["stem", "conv1", "layer1.0", "layer1.1"]
    for run, (color, _) in zip(group, drawn.RUN_STYLES, strict=False):
        own = rows[rows["run"] == run].set_index("layer").reindex(order)
        marks = next(
            line for line in axes.lines if line.get_color() == color and line.get_marker() != "None"
        )
        np.testing.assert_allclose(marks.get_ydata(), own["fraction"])
        assert np.abs(marks.get_xdata() - np.arange(4)).max() < 0.3
        bars = next(bar for bar in axes.collections if to_hex(bar.get_color()[0]) == color.lower())
        ends = [np.array(each)[:, 1] for each in bars.get_segments() if len(each)]
        np.testing.assert_allclose(ends, own[["lo", "hi"]].dropna())


def test_matrices_hold_every_pair_the_right_way_round():
    group = {"a": ["conv1", "layer1.0"], "b": ["conv1", "layer1.0", "layer1.1"]}
    tables = invented(group)
    figure = drawn.similarity(tables["similarity"], "demo", list(group), "svcca")
    matrices = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    assert [matrix.shape for matrix in matrices[:3]] == [(2, 2), (3, 2), (3, 3)]
    known = tables["similarity"].set_index(["run", "layer", "other_run", "other_layer"])["svcca"]
    for i, j in itertools.product(range(3), range(2)):
        expected = known["a", group["a"][j], "b", group["b"][i]]
        assert matrices[1][i, j] == pytest.approx(expected)
    assert matrices[0][0, 1] == matrices[0][1, 0] == known["a", "conv1", "a", "layer1.0"]


def test_matched_channels_are_dots_with_the_share_below():
    group = GROUPS["three"]
    tables = invented(group)
    figure = drawn.matched(tables["matching"], tables["matched"], "demo", "demo", list(group))
    upper, lower = figure.axes[:2]
    rows = tables["matched"].query("run == 'demo_plain' and layer == 'conv1'")
    dots = [np.asarray(each.get_offsets())[:, 1] for each in upper.collections]
    assert any(
        len(each) == 12 and np.allclose(np.sort(each), np.sort(rows["correlation"]))
        for each in dots
    )
    shares = tables["matching"].query("run == 'demo_random'")["share_same"]
    marks = next(line for line in lower.lines if line.get_color() == style.GREEN)
    np.testing.assert_allclose(marks.get_ydata(), shares)


def test_the_script_draws_the_figures_that_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = GROUPS["two small"]
    tables = invented(group)
    for name, rows in tables.items():
        store.write_table(rows, tmp_path / f"{name}.csv")
    given = {name: tmp_path / f"{name}.csv" for name in tables}
    settings = {"group": "demo", "runs": list(group)}
    assert set(by_script("figures_compare", tmp_path, given, settings)) == {
        "accuracy",
        "kinds_of_channels",
        "sizes_and_indices",
        "matched_channels",
        "CKA_of_all_layers",
        "SVCCA_of_all_layers",
    }

"""What large runs cost: the page is that of the estimates, its sums those of their rows."""

import math

import pytest

from rfatlas.errors import RfatlasError
from rfatlas.plan import estimates, scaling


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # The cache of descriptions lies below the folder of a run.
        patch.chdir(tmp_path_factory.mktemp("run"))
        return scaling.describe()


def test_the_page_is_that_of_the_estimates(description, monkeypatch):
    monkeypatch.setattr(scaling, "describe", lambda: description)
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert page == scaling.document(page, scaling.tables()), (
        "the tables in docs/scaling.md are not those of the estimates; "
        "write them anew: PYTHONPATH=scripts python -m rfatlas.plan.scaling"
    )


def test_a_page_without_a_place_for_a_table_is_refused():
    page = "a\n<!-- table x -->\nold\n<!-- end -->\nb\n"
    assert scaling.document(page, {"x": "new"}) == (
        "a\n<!-- table x -->\n\nnew\n\n<!-- end -->\nb\n"
    )
    with pytest.raises(RfatlasError, match="table y"):
        scaling.document(page, {"y": "new"})


def test_the_sum_is_that_of_the_estimates_of_one_run(description):
    found = scaling.budget(description, 50_000, 126e3, 8, 0)
    assert found.plan.config["ablation"]["images"] == 10_000, "the settings are the shipped ones"
    total = sum(row.wall_s for row in found.rows)
    lines = list(scaling.cost(description))
    sums = next(line for line in lines if "one after another" in line)
    assert sums.split("|")[3].strip() == f"**{total / 86400:.1f} d**"


def row(stage="ablation", jobs=10, seconds=60.0, parallel=4):
    return estimates.Row(stage, "run", jobs, seconds, parallel, 1000, {})


@pytest.mark.parametrize("runs", [1, 3, 100])
def test_jobs_of_all_runs_stand_in_one_line_for_the_devices(runs):
    # Dealt out one by one to the device that is free first.
    free = [0.0] * 4
    for _ in range(runs * 10):
        free[free.index(min(free))] += 60
    assert scaling.wall(row(), runs, 8) == max(free)
    one = row("channels", 1, 5.0, 1)
    assert scaling.wall(one, runs, 8) == math.ceil(runs / 2) * 5.0
    assert scaling.wall(row("images", 1, 9.0, 1), runs, 8) == 9.0


@pytest.mark.parametrize("images", [50_000, 1_281_167])
@pytest.mark.parametrize("cores, gpus", [(8, 0), (8, 1), (512, 64)])
def test_ranges_last_as_long_as_a_job_should_or_use_every_device_that_is_worth_a_job(
    description, images, cores, gpus
):
    size, found = scaling.range_size(description, images, 100e3, cores, gpus)
    assert found.jobs == math.ceil(images / size)
    low, high = (60 * minutes for minutes in scaling.JOB_MINUTES)
    if found.jobs > found.parallel:
        assert low <= found.seconds <= high
    elif found.jobs > 0.9 * found.parallel:
        assert 60 * scaling.SHORTEST_MINUTES <= found.seconds <= high or found.jobs == 1
    else:
        # One job more would make them too short.
        shorter = found.seconds * found.jobs / (found.jobs + 1)
        assert shorter < 60 * scaling.SHORTEST_MINUTES <= found.seconds or found.jobs == 1


def test_every_lever_costs_less(description):
    lines = list(scaling.levers(description))
    assert len(lines) == 2 + 1 + len(scaling.LEVERS) + 1 + 1
    whole = scaling.budget(description, 50_000, 126e3, 8, 0)
    for changes in scaling.LEVERS.values():
        found = scaling.budget(description, 50_000, 126e3, 8, 0, **changes)
        assert sum(r.wall_s for r in found.rows) < sum(r.wall_s for r in whole.rows)

"""Estimates before a run: disk from shapes, time from rates, and a disk that is too small."""

import csv
from collections import namedtuple

import pytest

from rfatlas.errors import RfatlasError
from rfatlas.plan import config, estimates, preflight
from rfatlas.tables import similarity

RATES = {
    "start_plain": 0.0,
    "start_torch": 0.0,
    "model": 0.0,
    "scenes": 1.0,
    "decode_file": 0.001,
    "decode_bytes": 10.0,
    "forward_cpu": 10.0,
    "summary_cpu": 1e12,
    "fields_cpu": 5.0,
    "fields_unit": 0.0,
    "merge": 1e12,
    "virtual_filters": 1e12,
    "gabor_field": 0.01,
    "gabor_pixels": 0.5,
    "gratings_index": 0.0,
    "stimuli_cpu": 5.0,
    "stimuli_image": 0.0,
    "ablation_cpu": 5.0,
    "ablation_pair": 0.0,
    "channels": 0.0,
    "orientation": 0.0,
    "opponency": 0.0,
    "figures": 0.0,
    "figures_orientation": 0.0,
    "figures_color": 0.0,
    "figures_gabor": 0.0,
    "figures_gratings": 0.0,
    "figures_preferred_stimulus": 0.0,
    "figures_virtual_filters": 0.0,
    "compare": 100.0,
    "compare_pair": 1e12,
    "figures_compare": 0.0,
    "atlas": 0.5,
    "figures_ablation": 0.0,
    "forward_gpu": 1000.0,
    "ablation_gpu": 300.0,
    "fields_gpu": 500.0,
    "stimuli_gpu": 400.0,
}

LAYERS = [
    {
        "name": "near",
        "channels": 8,
        "height": 50,
        "width": 50,
        "rectified": False,
        "size": 9,
        "stride": 1,
        "gflops": 1.0,
    },
    {
        "name": "far",
        "channels": 16,
        "height": 25,
        "width": 25,
        "rectified": True,
        "size": None,
        "stride": None,
        "gflops": 2.0,
    },
]


def budget(count=1000, cores=4, gpus=0, mean_bytes=5e4, **sections):
    """A budget for one run of an invented network on `count` images of 100 pixels."""
    raw = {
        "runs": {"a": {"model": "net", "dataset": "photos"}},
        "models": {"net": {"factory": "x.y", "weights": "NAMED"}},
        "datasets": {"photos": {"source": "scenes"}},
        **sections,
    }
    problems, filled = config.check(raw)
    assert problems == []
    # Photographs that need not be there.
    filled["datasets"]["photos"]["source"] = "list"
    description = {
        "gflops": 2.0,
        "parameters": 1_000_000,
        "n_classes": 10,
        "input": {"resize": 120, "crop": 100},
        "layers": LAYERS,
    }
    images = preflight.Images(count, mean_bytes, 9, "digest")
    plan = preflight.Plan(filled, {"net": description}, {"photos": images})
    layers = {run: ["near", "far"] for run in filled["runs"]}
    return estimates.Budget(plan, layers, cores, gpus, RATES)


def row(found, stage):
    return next(row for row in found.rows if row.stage == stage)


def test_images_take_three_bytes_per_pixel_and_their_decoding_its_time():
    images = row(budget(), "images")
    assert images.files.keys() == {"results/images/photos_120_100.h5"}
    assert images.disk == pytest.approx(1000 * 3 * 100 * 100, rel=0.01)
    assert images.wall_s == pytest.approx(1000 * (0.001 + 0.05 / 10) / 4)


def test_a_pass_takes_its_operations_over_the_rate_of_all_threads():
    assert row(budget(), "activations").wall_s == pytest.approx(1000 * 2.0 / (10 * 4), rel=0.01)
    assert row(budget(gpus=1), "activations").wall_s == pytest.approx(2.0, rel=0.01)


def test_ranges_run_side_by_side_as_cores_allow():
    assert row(budget(activations={"range_size": 300}), "activations").jobs == 4
    alone = row(budget(cores=4, activations={"range_size": 250}), "activations").wall_s
    twice = row(budget(cores=8, activations={"range_size": 250}), "activations").wall_s
    assert alone == pytest.approx(2 * twice)


def test_ranges_run_on_as_many_gpus_as_there_are():
    settings = {"range_size": 100}
    one, many = (row(budget(gpus=n, activations=settings), "activations") for n in (1, 4))
    assert one.jobs == 10 and one.wall_s == pytest.approx(10 * one.seconds)
    assert many.wall_s == pytest.approx(3 * one.seconds)


def test_ranges_are_merged_at_the_rate_of_the_disk():
    found = budget()
    found.rates["merge"] = 2.0
    merged = row(found, "activations").files["results/a/activations.h5"]
    assert row(found, "activations_merge").seconds == pytest.approx(merged / 2e6)
    assert found.minutes("activations_merge", "a") >= 10


def test_activations_on_disk_are_values_per_image_lists_and_kept_maps():
    found = row(budget(activations={"top_k": 10, "keep_maps": ["far"]}), "activations")
    per_image = 1000 * ((8 + 16) * 2 * 4 + 10 * 4 + 16 * 4)
    lists = 10 * 10 * (8 * 4 + 16 * 2)
    maps = 1000 * 16 * 25 * 25 * 2
    class_means = 8 * 10 * 24
    merged = found.files["results/a/activations.h5"]
    assert merged == pytest.approx(per_image + lists + maps + class_means)
    assert found.disk == pytest.approx(2 * merged), "the ranges stay until they are merged"


def test_receptive_fields_cost_the_crop_twice_for_every_unit():
    found = row(budget(activations={"top_k": 10}), "receptive_fields")
    near = 2 * ((9 + 1) / 100) ** 2 * 1.0 * 8 * 10
    far = 2 * 2.0 * 16 * 10
    assert found.jobs == 2
    assert found.jobs * found.seconds == pytest.approx((near + far) / (5 * 4), rel=0.01)


def test_receptive_fields_on_disk_are_what_the_file_holds():
    found = row(budget(receptive_fields={"keep": 5, "channels": 4}), "receptive_fields")
    for layer, side in (("near", 9), ("far", 100)):
        patches, gradients = 4 * 5 * side**2 * 3, 4 * 5 * side**2 * 3 * 4
        means, counts = 4 * 4 * 3 * side**2 * 8, 4 * side**2 * 4
        size = found.files[f"results/a/receptive_fields/{layer}.h5"]
        assert size == patches + gradients + means + counts


def test_gabors_cost_their_fields_and_the_pixels_of_the_gradients():
    found = row(budget(), "gabor")
    fields = (8 + 16) * 3 * 0.01
    pixels = 2 * (8 * 9**2 + 16 * 100**2) / 0.5e6
    assert found.jobs == 2 and 2 * found.seconds == pytest.approx(fields + pixels)
    alone = row(budget(stages={"virtual_filters": False}), "gabor")
    assert alone.jobs == 2
    assert alone.jobs * alone.seconds == pytest.approx(fields * 2 / 3 + pixels)
    # Two channels of each layer have a gradient, all a virtual filter.
    few = row(budget(receptive_fields={"channels": 2}), "gabor")
    pixels = 2 * 2 * (9**2 + 100**2) / 0.5e6
    assert few.jobs * few.seconds == pytest.approx((8 + 16 + 2 * 2 * 2) * 0.01 + pixels)


def test_colour_costs_the_crop_for_every_stimulus_and_the_top_units():
    settings = {
        "orientations": 6, "frequencies": 5, "phases": 4, "directions": 3, "hues": 10, "top_k": 50,
    }  # fmt: skip
    found = row(budget(color=settings, receptive_fields={"channels": 4}), "color")
    shown = 6 * (30 + 1) * 4 + 2 * 10 + 7
    # Of 16 channels with 50 units each that see whole images, at most every image is shown.
    images = budget().plan.images["photos"].count
    near, far = shown + 8 * 12 + 8 * 50, shown + 16 * 12 + min(16 * 50, images)
    work = (near * (10 / 100) ** 2 * 1.0 + far * 2.0) / (10 * 4)
    start = 2 * budget().rates["start_torch"]
    assert found.jobs == 2 and found.jobs * (found.seconds - start) == pytest.approx(work)
    # Each answer with and without the last ReLU, the mean responses, the maps.
    answers = 6 * 30 * 4 + 6 * 30 + 2 * (2 * 10 + 7 + 6 * 4)
    assert found.files["results/a/color/near.h5"] == 4 * 8 * answers + 4 * 4 * 3 * 9**2
    answers += 6 * 30 * 4
    assert found.files["results/a/color/far.h5"] == 4 * 16 * answers + 4 * 4 * 3 * 100**2


def test_gratings_cost_the_crop_for_every_stimulus():
    settings = {"orientations": 24, "frequencies": 10, "phases": 8, "f1_phases": 30}
    found = row(budget(gratings=settings), "gratings")
    near = ((9 + 1) / 100) ** 2 * 1.0 * (24 * 10 * 8 + 8 * 30)
    far = 2.0 * (24 * 10 * 8 + 16 * 30)
    assert found.jobs == 2
    assert found.jobs * found.seconds == pytest.approx((near + far) / (10 * 4), rel=0.01)
    # In 32 bits; of the rectified layer also what enters its last ReLU.
    assert found.files == {
        "results/a/gratings/near.h5": 8 * 24 * 10 * 8 * 4,
        "results/a/gratings/far.h5": 16 * 24 * 10 * 8 * 4 * 2,
    }


def test_preferred_stimuli_cost_a_crop_twice_for_every_step_of_every_ascent():
    # Two noise starts and the gradient, in both directions, and the photograph.
    found = row(budget(preferred_stimulus={"steps": 10}), "preferred_stimulus")
    near = 2 * ((9 + 1) / 100) ** 2 * 1.0 * 8 * 7 * 10
    far = 2 * 2.0 * 16 * 7 * 10
    assert found.jobs == 2
    assert found.jobs * found.seconds == pytest.approx((near + far) / (5 * 4), rel=0.01)
    pictures = {"near": 8 * 2 * 3 * 9**2 * 4, "far": 16 * 2 * 3 * 100**2 * 4}
    for layer, size in pictures.items():
        assert found.files[f"results/a/preferred_stimulus/{layer}.h5"] == size
    channels = {"sample": 4, "all_up_to": "near"}
    some = row(
        budget(
            preferred_stimulus={"steps": 10, "channels": channels, "patch_start": False},
            stages={"receptive_fields": False},
        ),
        "preferred_stimulus",
    )
    ascents = (near / 7 + far / 7 / 4) * 4
    assert some.jobs * some.seconds == pytest.approx(ascents / (5 * 4), rel=0.01)


def test_groups_of_runs_cost_the_products_of_all_their_channels():
    runs = {name: {"model": "net", "dataset": "photos"} for name in "ab"}
    found = budget(runs=runs, compare={"groups": {"both": ["a", "b"], "again": ["b", "a"]}})
    rows = [one for one in found.rows if one.stage == "compare"]
    assert [one.name for one in rows] == ["again", "both"]
    channels = 2 * (8 + 16)
    assert rows[0].seconds == pytest.approx(2 * 2e-9 * 1000 * channels**2 / 100)
    assert estimates._TILE == similarity.TILE
    drawn = [one.name for one in found.rows if one.stage == "figures_compare"]
    assert drawn == ["again", "both"]
    assert "compare" not in {one.stage for one in budget().rows}


def test_the_memory_of_a_group_does_not_take_all_products_at_once():
    def memory(runs):
        names = [f"run{i}" for i in range(runs)]
        every = {name: {"model": "net", "dataset": "photos"} for name in names}
        wide = [{**layer, "channels": 2048} for layer in LAYERS]
        found = budget(runs=every, compare={"groups": {"all": names}})
        found.layers = dict.fromkeys(names, wide)
        return found.mem_mb("compare", "all")

    # Two groups of channels and what is summed up next; of each layer, two per run, a square of
    # its own.
    products, own = 3 * 8 * 4096**2 / 1e6, 8 * 2048**2 / 1e6
    assert products < memory(2) < products + 1000
    assert memory(9) - memory(2) == pytest.approx(14 * own, abs=2)


def test_ablation_costs_what_lies_behind_a_layer_for_every_channel_and_mode():
    found = row(budget(count=1000), "ablation")
    # Behind `near` lies one of two GFLOP; `far` is the last. One job per layer shares the look.
    gflop = (2 + 8 * 3 * (2 - 1)) * 1000
    assert found.jobs == 2
    assert found.jobs * found.seconds == pytest.approx(gflop / (5 * 4), rel=0.01)
    assert found.files == {
        "results/a/ablation/near.h5": 8 * 3 * (7 * 1000 + 4 * 10),
        "results/a/ablation/far.h5": 16 * 3 * (7 * 1000 + 4 * 10),
    }
    settings = {"layers": ["near"], "channels": 2, "images": 500, "modes": ["zero"]}
    few = row(budget(count=1000, ablation={**settings, "range_size": 200}), "ablation")
    assert few.jobs == 3 and few.files == {"results/a/ablation/near.h5": 2 * (7 * 500 + 4 * 10)}
    assert few.seconds == pytest.approx((2 + 2) * 200 / (5 * 4), rel=0.01)
    # Every mode for some layers; one range where channels may stop early.
    settings |= {"all_modes_layers": ["near"], "precision": {"delta_top1": 0.01}}
    more = row(budget(count=1000, ablation={**settings, "range_size": 200}), "ablation")
    assert more.jobs == 1 and more.seconds == pytest.approx((2 + 6) * 500 / (5 * 4), rel=0.01)


def test_a_run_without_anything_to_lose_costs_no_ablation():
    found = budget()
    assert row(found, "ablation").name == "a"
    found.plan.descriptions["net"]["n_classes"] = None
    again = estimates.Budget(found.plan, {"a": ["near", "far"]}, 4, 0, RATES)
    assert not {"ablation", "ablation_groups", "figures_ablation"} & {
        row.stage for row in again.rows
    }


def test_groups_cost_what_lies_behind_the_layer_for_every_set_and_image():
    settings = {
        "groups": {"mine": {"near": [0, 1]}},
        "modes": ["zero", "weight"],
        "controls": 4,
        "cumulative": {"orders": ["osi", "random"], "steps": 3, "random": 2},
    }
    found = row(budget(1000, ablation={"images": 100}, ablation_groups=settings), "ablation_groups")
    # Five sets of each group in two modes (the three of the table and the own one), both ways by
    # osi and two random orders at three counts.
    near, far = 2 * 4 * 5 + 4 * 3, 2 * 3 * 5 + 4 * 3
    # Behind the last layer there is next to nothing.
    work = 100 * near * (2.0 - 1.0)
    assert found.jobs == 2
    assert found.jobs * found.seconds == pytest.approx(work / (5 * 4), rel=0.01)
    assert found.files == {
        "results/a/ablation_groups/near.h5": 7 * near * 100,
        "results/a/ablation_groups/far.h5": 7 * far * 100,
    }


def test_memory_of_the_pass_grows_with_the_batch_alone():
    def memory(count, batch):
        return budget(count, activations={"batch_size": batch}).mem_mb("activations", "a")

    assert memory(1000, 8) == memory(50000, 8)
    assert memory(1000, 800) > memory(1000, 8) + 100


def test_stages_that_are_switched_off_cost_nothing():
    switches = config.schema()["properties"]["stages"]["properties"]
    found = budget(stages=dict.fromkeys(switches, False))
    stages = {"images", "model", "activations", "activations_merge", "channels"}
    assert {row.stage for row in found.rows} == stages


def test_a_job_is_granted_more_time_than_it_should_take():
    found = budget(count=100_000)
    estimate = row(found, "activations").seconds / 60
    assert found.minutes("activations", "a") >= 4 * estimate
    assert found.minutes("channels", "a") == 10
    assert found.minutes("images", "unheard_of_1_1") == 240


def test_the_table_names_every_stage_and_the_sum():
    lines = budget().table().splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        "images",
        "model",
        "activations",
        "activations_merge",
        "receptive_fields",
        "virtual_filters",
        "skip_residual",
        "gabor",
        "gratings",
        "color",
        "preferred_stimulus",
        "ablation",
        "channels",
        "orientation",
        "opponency",
        "ablation_groups",
        "findings",
        "figures",
        "figures_orientation",
        "figures_color",
        "figures_gabor",
        "figures_gratings",
        "figures_preferred_stimulus",
        "figures_virtual_filters",
        "atlas",
        "figures_ablation",
        "total",
    ]
    assert "30.1 MB" in lines[2] and "photos_120_100" in lines[2]


def test_a_disk_that_is_too_small_is_refused_with_what_is_needed(tmp_path, monkeypatch):
    found = budget()
    need = sum(row.disk for row in found.rows)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda folder: usage(need + 1))
    found.check_disk(tmp_path)
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda folder: usage(need - 1e5))
    with pytest.raises(RfatlasError, match=r"need about .* MB more \(.* MB free"):
        found.check_disk(tmp_path)
    # What lies there already need not be written again.
    packed = tmp_path / "results" / "images" / "photos_120_100.h5"
    packed.parent.mkdir(parents=True)
    packed.write_bytes(bytes(200_000))
    found.check_disk(tmp_path)


def test_an_atlas_grows_with_the_channels():
    row = next(row for row in budget().rows if row.stage == "atlas")
    channels = sum(layer["channels"] for layer in LAYERS)
    assert row.seconds == pytest.approx(channels * RATES["atlas"])
    assert row.disk == pytest.approx(5e6 + 25e3 * channels)


def test_every_shipped_rate_has_a_value_a_unit_and_a_source():
    assert estimates.read_rates().keys() == RATES.keys()
    with estimates.RATES.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            assert float(line["value"]) > 0
            assert line["unit"] and line["source"], line["rate"]


def test_a_rule_belongs_to_the_stage_that_its_name_begins_with():
    for rule, stage in (
        ("activations_range", "activations"),
        ("activations_merge", "activations_merge"),
        ("ablation_run_3", "ablation"),
        ("ablation_groups_run_3", "ablation_groups"),
        ("ablation_groups_tables", "ablation_groups_tables"),
        ("figures_accuracy", "figures"),
        ("figures_gabor_run", "figures_gabor"),
        ("compare_tables", "compare"),
    ):
        assert estimates.stage_of(rule) == stage

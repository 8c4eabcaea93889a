"""Estimates before a run: disk from shapes, time from rates, and a disk that is too small."""

import csv
from types import SimpleNamespace

import pytest

from rfatlas import stages
from rfatlas.errors import RfatlasError
from rfatlas.plan import config, estimates, preflight, schema
from rfatlas.tables import similarity

#: The split of gradients into two parts.
PART = next(stage.name for stage in stages.STAGES if stage.part_of == "receptive_fields")

RATES = {
    "start_plain": 0.0,
    "start_torch": 0.0,
    "scenes": 1.0,
    "decode_file": 0.001,
    "decode_bytes": 10.0,
    "forward_cpu": 10.0,
    "fields_cpu": 5.0,
    "fields_look": 0.0,
    "merge": 1e12,
    "stimuli_cpu": 5.0,
    "stimuli_look": 0.0,
    "ablation_cpu": 5.0,
    "ablation_look": 0.0,
    "compare": 100.0,
    "compare_pair": 1e12,
    "figures": 2.0,
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
        "rf_kind": "exact",
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
        "rf_kind": "global",
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


def costs(found, script, name="a"):
    """The cost of a stage's job for each layer."""
    return {layer: found.cost(script, name, layer) for layer in ("near", "far")}


def work(found, script):
    """Seconds of all jobs of a stage, one per layer."""
    return sum(cost.seconds for cost in costs(found, script).values())


def job(script, *output, mem_mb=1000, threads=4, gpu=0):
    """A job as Snakemake has it."""
    rule = SimpleNamespace(script=f"../../scripts/{script}.py" if script else None)
    resources = {"mem_mb": mem_mb, "gpu": gpu}
    return SimpleNamespace(rule=rule, output=output, threads=threads, resources=resources)


RANGE = "results/a/activations/0-250.h5"
PACKED = "results/images/photos_120_100.h5"


def test_images_take_three_bytes_per_pixel_and_their_decoding_its_time():
    images = budget().cost("images", "photos_120_100")
    assert budget().cost("images", "photos_100x120_100_bicubic") == images
    assert images.disk == pytest.approx(1000 * 3 * 100 * 100, rel=0.01)
    assert images.seconds == pytest.approx(1000 * (0.001 + 0.05 / 10) / 4)


def test_a_pass_takes_its_operations_over_the_rate_of_all_threads():
    for gpus, seconds in ((0, 1000 * 2.0 / (10 * 4)), (1, 2.0)):
        found = budget(gpus=gpus).cost("activations", "a")
        assert found.seconds == pytest.approx(seconds, rel=0.01)


def test_jobs_run_side_by_side_as_cores_allow():
    for machine, parallel in (({"cores": 4}, 1), ({"cores": 8}, 2), ({"gpus": 4}, 4)):
        ranges = [job("activations", RANGE, gpu=int("gpus" in machine))] * 4
        found = budget(activations={"range_size": 250}, **machine)
        row = found.rows(ranges)["activations"]
        each = found.cost("activations", "a").seconds
        assert row.jobs == 4 and row.seconds == pytest.approx(4 * each / parallel)


def test_a_small_network_has_one_thread_and_more_jobs_at_a_time():
    found = budget()
    wide = found.cost("activations", "a").seconds
    assert found.threads("a") == 4
    found.plan.descriptions["net"]["gflops"] = 0.1
    assert found.threads("a") == 1
    assert found.cost("activations", "a").seconds == pytest.approx(wide * 0.1 / 2 * 4, rel=0.01)
    alone = found.cost("activations", "a").seconds
    row = found.rows([job("activations", RANGE, threads=1)] * 4)["activations"]
    assert row.seconds == pytest.approx(alone)


def test_ranges_are_merged_at_the_rate_of_the_disk():
    found = budget()
    found.rates["merge"] = 2.0
    merged = found.cost("activations_merge", "a")
    assert merged.seconds == pytest.approx(merged.disk / 2e6)
    assert found.minutes("activations_merge", "a") >= 10


def test_activations_on_disk_are_values_per_image_lists_and_kept_maps():
    found = budget(activations={"top_k": 10, "keep_maps": ["far"], "range_size": 500})
    per_image = 1000 * ((8 + 16) * 2 * 4 + 10 * 4 + 16 * 4)
    lists = 10 * 10 * (8 * 4 + 16 * 2)
    maps = 1000 * 16 * 25 * 25 * 2
    class_means = 8 * 10 * 24
    merged = per_image + lists + maps + class_means
    assert found.cost("activations_merge", "a").disk == pytest.approx(merged)
    half = (per_image + maps) / 2 + lists + class_means
    assert found.cost("activations", "a").disk == pytest.approx(half), "of one range"


@pytest.mark.parametrize(
    ("split", "passes"),
    [
        ({"stages": {PART: False}}, 2),
        ({}, 3),
        ({PART: {"top_k": 4}}, 2.4),
    ],
)
def test_receptive_fields_cost_the_crop_twice_for_every_unit_and_once_more_if_split(split, passes):
    found = budget(activations={"top_k": 10}, **split)
    near = passes * ((9 + 1) / 100) ** 2 * 1.0 * 8 * 10
    far = passes * 2.0 * 16 * 10
    assert work(found, "receptive_fields") == pytest.approx((near + far) / (5 * 4), rel=0.01)


def test_receptive_fields_on_disk_are_what_the_file_holds():
    found = costs(budget(receptive_fields={"keep": 5, "channels": 4}), "receptive_fields")
    for layer, side in (("near", 9), ("far", 100)):
        patches, gradients = 4 * 5 * side**2 * 3, 4 * 5 * side**2 * 3 * 4
        means, counts = 4 * 4 * 3 * side**2 * 8, 2 * 4 * side**2 * 4
        parts = 4 * 2 * 3 * side**2 * 4
        assert found[layer].disk == patches + gradients + means + counts + parts


def test_what_runs_no_network_costs_what_the_register_says_of_each_channel():
    found = budget()
    scopes = set()
    for stage in stages.STAGES:
        seconds, size = stage.per_channel
        if seconds:
            layer, channels = ("far", 16) if stage.scope == "layer" else (None, 24)
            cost = found.cost(stage.name, "a", layer)
            assert (cost.seconds, cost.disk) == (channels * seconds, channels * size)
            scopes.add(stage.scope)
    assert scopes == {"layer", "run"}
    assert found.cost("figures", "a").seconds == 2 * RATES["figures"]
    assert found.cost("orientation", "a").seconds == found.cost("atlas_start", "a").seconds == 0


def test_colour_costs_the_crop_for_every_stimulus_and_the_top_units():
    settings = {
        "orientations": 6, "frequencies": 5, "phases": 8, "directions": 3, "hues": 10, "top_k": 50,
    }  # fmt: skip
    found = budget(color=settings, receptive_fields={"channels": 4})
    shown = 6 * (30 + 1) * 8 + 2 * 10 + 7
    # Of 16 channels with 50 units each that see whole images, at most every image is shown.
    images = budget().plan.images["photos"].count
    shown += 3 * 3 * 31 * 8
    near = shown + 8 * 12 + 8 * 5 * 4 + 8 * 50
    far = shown + 16 * 12 + 16 * 5 * 4 + min(16 * 50, images)
    seconds = (near * (10 / 100) ** 2 * 1.0 + far * 2.0) / (10 * 4)
    assert work(found, "color") == pytest.approx(seconds)
    # Answers to gratings with and without the last ReLU, the mean responses, the maps.
    answers = 6 * 30 * 8 + 6 * 30 + 6
    assert costs(found, "color")["near"].disk == 4 * 8 * answers + 4 * 4 * 3 * 9**2
    answers += 6 * 30 * 8
    assert costs(found, "color")["far"].disk == 4 * 16 * answers + 4 * 4 * 3 * 100**2


def test_gratings_cost_the_crop_for_every_stimulus():
    settings = {"orientations": 24, "frequencies": 10, "phases": 8, "f1_phases": 30}
    settings |= {"diameters": 9, "contrasts": 7}
    coarse = 12 * 10 * 4
    for parts, grids, own in (
        ((), 0, 0),
        (("size",), 2, 9 * 4),
        (("contrast",), 3, 7 * 4 + 5 * 4),
        (("size", "contrast"), 2 + 3 * 3, 9 * 4 + 7 * 4 + 5 * 4),
    ):
        switches = {part: part in parts for part in ("size", "contrast")}
        found = budget(gratings=settings, stages=switches)
        every = 24 * 10 * 8 + grids * coarse
        near = ((9 + 1) / 100) ** 2 * 1.0 * (every + 8 * (30 + own))
        far = 2.0 * (every + 16 * (30 + own))
        assert work(found, "gratings") == pytest.approx((near + far) / (10 * 4), rel=0.01)
    # In 32 bits, and the means over phases; of the rectified layer also what enters its last ReLU.
    sizes = {layer: cost.disk for layer, cost in costs(found, "gratings").items()}
    assert sizes == {"near": 8 * 24 * 10 * (8 + 1) * 4, "far": 16 * 24 * 10 * (8 * 2 + 1) * 4}


def test_preferred_stimuli_cost_a_crop_twice_for_every_step_of_every_ascent():
    # Two noise starts and the gradient, in both directions, and the photograph.
    found = budget(preferred_stimulus={"steps": 10})
    near = 2 * ((9 + 1) / 100) ** 2 * 1.0 * 8 * 7 * 10
    far = 2 * 2.0 * 16 * 7 * 10
    assert work(found, "preferred_stimulus") == pytest.approx((near + far) / (5 * 4), rel=0.01)
    sizes = {layer: cost.disk for layer, cost in costs(found, "preferred_stimulus").items()}
    assert sizes == {"near": 8 * 2 * 3 * 9**2 * 4, "far": 16 * 2 * 3 * 100**2 * 4}
    channels = {"sample": 4, "all_up_to": "near"}
    some = budget(
        preferred_stimulus={"steps": 10, "channels": channels, "patch_start": False},
        stages={"receptive_fields": False},
    )
    ascents = (near / 7 + far / 7 / 4) * 4
    assert work(some, "preferred_stimulus") == pytest.approx(ascents / (5 * 4), rel=0.01)


def test_groups_of_runs_cost_the_products_of_all_their_channels():
    runs = {name: {"model": "net", "dataset": "photos"} for name in "ab"}
    found = budget(runs=runs, compare={"groups": {"both": ["a", "b"], "again": ["b", "a"]}})
    channels = 2 * (8 + 16)
    seconds = 2 * 2e-9 * 1000 * channels**2 / 100
    for group in ("both", "again"):
        assert found.cost("compare", group).seconds == pytest.approx(seconds)
        assert found.cost("figures", group).seconds == 4 * 2.0, "layers of both runs"
    assert estimates._TILE == similarity.TILE


def test_the_memory_of_a_group_does_not_take_all_products_at_once():
    def memory(runs):
        names = [f"run{i}" for i in range(runs)]
        every = {name: {"model": "net", "dataset": "photos"} for name in names}
        wide = [{**layer, "channels": 2048} for layer in LAYERS]
        found = budget(runs=every, compare={"groups": {"all": names}})
        found.layers = dict.fromkeys(names, dict(enumerate(wide)))
        return found.mem_mb("compare", "all")

    # Two groups of channels and what is summed up next; of each layer, two per run, a square of
    # its own.
    products, own = 3 * 8 * 4096**2 / 1e6, 8 * 2048**2 / 1e6
    assert products < memory(2) < products + 1000
    assert memory(9) - memory(2) == pytest.approx(14 * own, abs=2)


def test_ablation_costs_what_lies_behind_a_layer_for_every_channel_and_mode():
    # Behind `near` lies one of two GFLOP; `far` is the last. Each layer's job looks at all images.
    found = budget(count=1000)
    gflop = (2 + 8 * 3 * (2 - 1) + 2) * 1000
    assert work(found, "ablation") == pytest.approx(gflop / (5 * 4), rel=0.01)
    sizes = {layer: cost.disk for layer, cost in costs(found, "ablation").items()}
    assert sizes == {"near": 8 * 3 * (7 * 1000 + 4 * 10), "far": 16 * 3 * (7 * 1000 + 4 * 10)}
    settings = {"channels": 2, "images": 500, "modes": ["zero"], "range_size": 200}
    few = budget(count=1000, ablation=settings)
    assert costs(few, "ablation")["near"].disk == 2 * (7 * 200 + 4 * 10)
    near = few.cost("ablation", "a", "near").seconds
    assert near == pytest.approx((2 + 2) * 200 / (5 * 4), rel=0.01)
    # Every mode for some layers; one range where channels may stop early.
    settings |= {"all_modes_layers": ["near"], "precision": {"delta_top1": 0.01}}
    near = budget(count=1000, ablation=settings).cost("ablation", "a", "near").seconds
    assert near == pytest.approx((2 + 6) * 500 / (5 * 4), rel=0.01)


def test_first_order_estimates_cost_three_passes_and_keep_those_of_exact_images():
    settings = {"images": 100, "modes": ["zero"]}
    found = budget(count=1000, ablation=settings, activations={"range_size": 400})
    cost = found.cost("ablation_estimates", "a")
    assert cost.seconds == pytest.approx(3 * 2 * 400 / (10 * 4), rel=0.01)
    # Of 1000 images 100 are exact: of all ranges together so many are kept.
    assert cost.disk == pytest.approx((8 + 16) * (8 * 100 * 400 / 1000 + 32))


def test_groups_cost_what_lies_behind_the_layer_for_every_set_and_image():
    settings = {
        "groups": {"mine": {"near": [0, 1]}},
        "modes": ["zero", "weight"],
        "controls": 4,
        "cumulative": {"orders": ["osi", "random"], "steps": 3, "random": 2},
    }
    found = budget(1000, ablation={"images": 100}, ablation_groups=settings)
    # Five sets of each group in two modes (the three of the table and the own one), both ways by
    # osi and two random orders at three counts.
    near, far = 2 * 4 * 5 + 4 * 3, 2 * 3 * 5 + 4 * 3
    # Behind the last layer there is next to nothing; each layer's job looks at all images.
    seconds = 100 * (2.0 + near * (2.0 - 1.0) + 2.0) / (5 * 4)
    assert work(found, "ablation_groups") == pytest.approx(seconds, rel=0.01)
    sizes = {layer: cost.disk for layer, cost in costs(found, "ablation_groups").items()}
    assert sizes == {"near": near * (7 * 100 + 4 * 10), "far": far * (7 * 100 + 4 * 10)}


def test_memory_of_the_pass_grows_with_the_batch_alone():
    def memory(count, batch):
        return budget(count, activations={"batch_size": batch}).mem_mb("activations", "a")

    assert memory(1000, 8) == memory(50000, 8)
    assert memory(1000, 800) > memory(1000, 8) + 100


def test_every_stage_with_jobs_per_layer_has_a_formula_and_its_memory():
    found = budget()
    for stage in stages.STAGES:
        script = next((schema.ROOT / "scripts").glob(f"{stage.name}.py"), None)
        if stage.scope == "layer" and script:
            assert found.cost(stage.name, "a", "far").disk > 0, stage.name
            assert found.mem_mb(stage.name, "a") == stage.mem_mb


def test_a_job_is_granted_more_time_than_it_should_take():
    found = budget(count=100_000)
    estimate = found.cost("activations", "a").seconds / 60
    assert found.minutes("activations", "a") >= 4 * estimate
    assert found.minutes("channels", "a") == 10
    assert found.minutes("images", "unheard_of_1_1") == 240
    far = found.minutes("receptive_fields", "a", "far")
    assert found.minutes("receptive_fields", "a", "near") < far


def test_the_table_is_of_the_jobs_that_will_run_and_their_sum():
    found = budget()
    asked = [
        job("color", "sub/results/a/color/near.h5", "sub/results/a/color/near.csv", mem_mb=1500),
        job("color", "results/a/color/far.h5", mem_mb=1500),
        job("images", PACKED, mem_mb=2000),
        job("atlas_start", "results/index.html"),
        job(None, "results/b"),
        job("of_another_workflow", "elsewhere.txt"),
    ]
    lines = found.table(found.rows(asked)).splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["images", "1"],
        ["color", "2"],
        ["atlas_start", "1"],
        ["total", "4"],
    ]
    both = found.rows(asked)["color"]
    assert both.seconds == pytest.approx(work(found, "color")), "of either layer once"
    assert "30.1 MB" in lines[2] and "0:12:06" in lines[3]


def test_a_disk_that_is_too_small_is_refused_with_what_is_needed(tmp_path, monkeypatch):
    found = budget()
    packed = tmp_path / PACKED
    packed.parent.mkdir(parents=True)
    images = job("images", packed)
    rows = found.rows([images])
    need = rows["images"].disk
    free = SimpleNamespace(free=need + 1)
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda folder: free)
    estimates.check_disk(rows, tmp_path)
    free.free = need - 1e5
    with pytest.raises(RfatlasError, match=r"need about .* MB more \(images .* MB free"):
        estimates.check_disk(rows, tmp_path)
    # What is written again takes the place of what is there.
    packed.write_bytes(bytes(200_000))
    estimates.check_disk(found.rows([images]), tmp_path)


def test_every_shipped_rate_has_a_value_a_unit_and_a_source():
    assert estimates.read_rates().keys() == RATES.keys()
    with estimates.RATES.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            assert float(line["value"]) > 0
            assert line["unit"] and line["source"], line["rate"]


def test_a_script_belongs_to_the_stage_that_its_name_begins_with():
    for script, stage in (
        ("activations_merge", "activations"),
        ("ablation", "ablation"),
        ("ablation_groups_tables", "ablation_groups"),
        ("compare", "compare"),
        ("comparison", None),
        ("", None),
    ):
        assert estimates.stage_of(script) == stage

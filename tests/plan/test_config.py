"""The config: what is refused and how, and what is filled in."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from rfatlas import stages
from rfatlas.errors import RfatlasError
from rfatlas.plan import config

ROOT = Path(__file__).resolve().parents[2]


def changed(good, key, value):
    """A copy of the config with the dotted key set (or removed, for the value `...`)."""
    result = copy.deepcopy(good)
    *parents, last = key.split(".")
    node = result
    for name in parents:
        node = node.setdefault(name, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return result


def test_a_good_config_has_no_problems(good):
    assert config.check(good)[0] == []


# (key, value, the key that is blamed if another, what the message must say besides)
BAD = [
    ("activatons", {"top_k": 3}, None, ["unknown key", "did you mean 'activations'?"]),
    ("activations.topk", 3, None, ["unknown key", "did you mean 'top_k'?", "batch_size"]),
    ("models.net.weight", "x", None, ["did you mean 'weights'?"]),
    ("models.net.input", {"size": 3}, "models.net.input.size", ["resize, crop, interpolation"]),
    ("datasets.photos.subset", {"sede": 1}, "datasets.photos.subset.sede", ["'seed'?"]),
    ("stages.figure", False, None, ["did you mean 'figures'?"]),
    ("device", "gpu", None, ["auto, cpu, cuda or cuda:N"]),
    ("tf32", "perhaps", None, ["true or false"]),
    ("tf32", 1, None, ["true or false"]),
    ("activations.top_k", 0, None, ["an integer from 1 to 10000"]),
    ("activations.top_k", -5, None, ["an integer from 1 to 10000"]),
    ("activations.top_k", 2.5, None, ["an integer"]),
    ("activations.top_k", "many", None, ["an integer"]),
    ("activations.top_k", None, None, ["an integer"]),
    ("activations.top_k", True, None, ["an integer"]),
    ("activations.batch_size", 0, None, ["an integer from 1 to 4096"]),
    ("activations.range_size", 0, None, ["an integer, at least 1"]),
    ("activations.keep_maps", "conv1", None, ["a list of different layer names"]),
    ("activations.keep_maps", ["conv1", "conv1"], None, ["a list of different layer names"]),
    ("activations", [1], None, ["a mapping"]),
    ("receptive_fields.top_k", 101, None, ["at most activations.top_k", "100"]),
    ("receptive_fields.keep", 101, None, ["at most", "100"]),
    ("skip_residual.top_k", 101, None, ["at most the number of units per channel", "100"]),
    ("receptive_fields.source", "best", None, ["top_per_image, top"]),
    ("receptive_fields.layers_per_job", 4, None, ["unknown key", "top_k"]),
    ("receptive_fields.channels", 0, None, ["an integer, at least 1, or null"]),
    ("figures.patches", 10, None, ["at most receptive_fields.keep", "9"]),
    ("preferred_stimulus.optimizer", "sgd", None, ["lbfgs, adam"]),
    ("preferred_stimulus.channels", 16, None, ["a mapping or null"]),
    ("preferred_stimulus.jitter", 3, None, ["with optimizer lbfgs", "adam"]),
    (
        "preferred_stimulus",
        {"noise_starts": 0, "gradient_start": False},
        "preferred_stimulus.noise_starts",
        ["at least 1"],
    ),
    ("runs.a.without", ["gratings", "channels"], "runs.a.without[1]", ["receptive_fields", "list"]),
    ("compare.groups", {"g": ["a"]}, "compare.groups.g", ["at least two different runs"]),
    ("compare.groups", {"g": ["a", "a"]}, "compare.groups.g", ["at least two different runs"]),
    (
        "compare.groups",
        {"g": ["a", "bb"]},
        "compare.groups.g",
        ["not defined", "did you mean 'b'?"],
    ),
    ("compare.groups", {"g": ["a", "b"]}, "compare.groups.g", ["a on photos, b on s", "data set"]),
    ("compare.groups", {"a/b": ["a", "b"]}, "compare.groups.a/b", ["letters, digits"]),
    ("compare.svcca_variance", 0, None, ["a number above 0 up to 1"]),
    ("compare.feature", "mean", None, ["image_mean, image_max"]),
    ("ablation.precision", {"pilot": 20}, "ablation.precision", ["no width", "delta_top1"]),
    ("ablation_groups.modes", ["no"], "ablation_groups.modes[0]", ["zero, mean, shuffle, weight"]),
    ("ablation_groups.controls", 0, None, ["an integer from 1 to 10000"]),
    ("ablation_groups.groups.a-b", {"conv1": [0]}, "ablation_groups.groups.a-b", ["no name"]),
    ("ablation_groups.groups.inactive", {"a": [0]}, "ablation_groups.groups.inactive", ["taken"]),
    (
        "ablation_groups.groups.mine",
        {"conv1": []},
        "ablation_groups.groups.mine.conv1",
        ["a list of different channel numbers"],
    ),
    (
        "ablation_groups.cumulative.orders",
        ["norm"],
        "ablation_groups.cumulative.orders[0]",
        ["filter_norm, osi"],
    ),
    ("channels.inactive_norm", 1.5, None, ["a number from 0 to 1"]),
    ("channels.inactive_drive", "small", None, ["a number from 0 to 1"]),
    ("runs", {}, None, ["at least one"]),
    ("figures", 1, None, ["a mapping"]),
    ("device", "cpu\n", None, ["auto, cpu, cuda or cuda:N"]),
    ("ablation.seed", 2**63, None, ["too large"]),
    ("preferred_stimulus.l2", "1e400", None, ["a number, at least 0"]),
    ("models.net.weights", "x" * 300 + ".pth", "models.net.weights", ["no such file"]),
    ("runs.compare", {"model": "net", "dataset": "s"}, "runs.compare", ["no name", "taken"]),
    ("runs.images", {"model": "net", "dataset": "s"}, "runs.images", ["no name", "taken"]),
    ("runs.a/b", {"model": "net", "dataset": "s"}, "runs.a/b", ["letters, digits"]),
    ("runs.a.model", "nett", None, ["not defined", "did you mean 'net'?", "net, r"]),
    ("runs.a.dataset", "photo", None, ["did you mean 'photos'?"]),
    ("runs.a.model", ..., None, ["missing"]),
    ("models.net.factory", ..., None, ["missing"]),
    ("models.net.factory", "resnet18", None, ["dotted path"]),
    ("models.net.factory", "nett.py:make", None, ["no such file", "did you mean 'net.py'?"]),
    ("models.net.weights", "nett.pth", None, ["no such file", "did you mean 'net.pth'?"]),
    ("models.net.weights", "files/net.pth", None, ["no such file", "nor a folder files"]),
    ("models.net.weights", "net.ckpt", None, ["no such file", "did you mean 'net.pth'?"]),
    ("models.net.kwargs", {"pretrained": True}, "models.net.kwargs.pretrained", ["`weights`"]),
    ("models.r.weights_key", "ema", None, ["with random weights it must be null"]),
    ("models.net.weights", "http://x.org/net.pth", None, ["https:", "file:"]),
    ("models.net.weights", "file:///nowhere/net.pth", None, ["no such file"]),
    ("models.net.weights", "https://x.org/net.pth", "models.net.sha256", ["SHA-256"]),
    ("models.net.weights", "random", None, ["random:SEED"]),
    ("models.net.weights", "random:one", None, ["random:SEED"]),
    ("models.net.weights", "n{1}.pth", None, ["{ and }", "rename the file"]),
    ("models.net.factory", "n{e}t.py:make", None, ["{ and }", "rename the file"]),
    ("models.net.sha256", "abc", None, ["64 hexadecimal digits or null"]),
    ("models.r.sha256", "a" * 64, None, ["null"]),
    ("models.net.layers", "all", None, ["default, or a list of different module names"]),
    ("models.net.layers", [], None, ["default, or a list of different module names"]),
    ("models.net.layers", ["a", "a"], None, ["default, or a list of different module names"]),
    ("models.net.kwargs", [1], None, ["a mapping"]),
    ("models.net.input", {"resize": [64]}, "models.net.input.resize", ["a list of two"]),
    ("models.net.input", {"resize": "no"}, "models.net.input.resize", ["null", "default"]),
    ("models.net.input", {"interpolation": "cubic"}, "models.net.input.interpolation", ["bicubic"]),
    ("models.net.input", {"mean": [1, 2]}, "models.net.input.mean", ["three numbers"]),
    ("models.net.input", {"std": [1, 0, 1]}, "models.net.input.std[1]", ["three numbers above 0"]),
    (
        "models.net.input",
        {"std": [0.2, 58.4, 0.2]},
        "models.net.input.std[1]",
        ["58.4", "above 0 and at most 10", "for pixel values in 0..1"],
    ),
    ("datasets.photos.source", "folder", None, ["did you mean 'folders'?", "imagenet_val"]),
    ("datasets.photos.path", ..., None, ["missing", "folders"]),
    ("datasets.photos.path", "fotos", None, ["no such folder", "did you mean 'photos'?"]),
    ("datasets.photos.path", "net.pth", None, ["not a folder"]),
    ("datasets.photos.labels", "truth.csv", None, ["imagenet_val, imagenet_tar"]),
    ("datasets.photos.count", 5, None, ["scenes"]),
    ("datasets.photos.limit", 0, None, ["an integer, at least 1, or null"]),
    ("datasets.photos.subset", {"size": 0}, "datasets.photos.subset.size", ["at least 1"]),
    ("datasets.photos.on_bad_image", "ignore", None, ["stop, skip"]),
    ("datasets.s.count", 0, None, ["an integer from 1 to 100000"]),
    ("datasets.s.path", "photos", None, ["folders"]),
    ("models.net.kwargs", {"p": float("nan")}, "models.net.kwargs.p", ["finite"]),
]


@pytest.mark.parametrize(("key", "value", "blamed", "said"), BAD)
def test_a_bad_value_is_refused_with_key_value_and_what_is_allowed(good, key, value, blamed, said):
    problems, _ = config.check(changed(good, key, value))
    assert len(problems) == 1
    assert problems[0].startswith(f"{blamed or key}: ")
    if blamed is None and value is not ... and value != {}:
        assert json.dumps(value) in problems[0] or str(value) in problems[0]
    for text in said:
        assert text in problems[0]


def test_all_problems_are_named_at_once(good):
    bad = changed(good, "device", "gpu")
    bad = changed(bad, "activations.top_k", 0)
    bad = changed(bad, "runs.a.dataset", "photo")
    bad = changed(bad, "models.net.weights", "nett.pth")
    with pytest.raises(RfatlasError) as error:
        config.load(bad)
    lines = str(error.value).splitlines()
    assert lines[0] == "the config has 4 problems:"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  - activations.top_k",
        "  - device",
        "  - models.net.weights",
        "  - runs.a.dataset",
    ]


def test_what_no_run_uses_need_not_be_there(good):
    good["models"]["spare"] = {"factory": "gone.py:make", "weights": "gone.pth"}
    good["datasets"]["spare"] = {"source": "list", "path": "gone.csv"}
    assert config.check(good)[0] == []


def test_a_key_that_is_no_text_is_refused(good):
    good["models"][1] = good["models"]["net"]
    problems, _ = config.check(good)
    assert len(problems) == 1 and problems[0].startswith("models.1: ") and "quotes" in problems[0]


def test_a_date_is_refused(good):
    value = yaml.safe_load("2026-01-02")
    problems, _ = config.check(changed(good, "models.net.kwargs", {"since": value}))
    assert len(problems) == 1 and problems[0].startswith("models.net.kwargs.since: 2026-01-02")


def test_defaults_are_filled_in_at_every_depth(good):
    good["datasets"]["photos"]["subset"] = {"seed": 3}
    good["models"]["net"]["input"] = {"resize": 300}
    loaded = config.load(good)
    assert loaded["activations"] == {
        "top_k": 100,
        "batch_size": 64,
        "range_size": 12500,
        "keep_maps": [],
    }
    assert loaded["datasets"]["photos"]["subset"] == {"size": 10000, "seed": 3}
    assert loaded["models"]["net"]["input"]["resize"] == 300
    assert loaded["models"]["net"]["input"]["mean"] is None
    assert loaded["models"]["r"]["layers"] == "default"
    assert good["models"]["r"] == {
        "factory": "torchvision.models.resnet18",
        "weights": "random:3",
    }, "the argument stays as it is"


def test_defaults_give_way_to_a_smaller_number_that_is_given(good):
    loaded = config.load(changed(good, "activations.top_k", 5))
    assert (loaded["receptive_fields"]["keep"], loaded["figures"]["patches"]) == (5, 5)
    loaded = config.load(changed(good, "receptive_fields.keep", 4))
    assert loaded["figures"]["patches"] == 4
    bad = changed(changed(good, "activations.top_k", 5), "receptive_fields.keep", 9)
    assert config.check(bad)[0][0].startswith("receptive_fields.keep: 9 is not allowed")


def test_a_stage_that_reads_another_is_off_with_it_unless_asked_for(good):
    readers = [stage.name for stage in stages.STAGES if stage.like == "receptive_fields"]
    switches = config.load(good)["stages"]
    assert readers and all(switches[reader] for reader in readers)
    switches = config.load(changed(good, "stages.receptive_fields", False))["stages"]
    assert not any(switches[reader] for reader in readers) and switches["gratings"]
    asked = changed(good, "stages", {"receptive_fields": False, readers[-1]: True})
    assert config.load(asked)["stages"][readers[-1]]


def test_loading_twice_changes_nothing(good):
    loaded = config.load(good)
    good["datasets"] = {"photos": good["datasets"]["photos"], "s": {"source": "scenes"}}
    assert config.load(good) == loaded
    assert json.dumps(loaded) == json.dumps(config.load(dict(reversed(good.items()))))


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1e-3", 0.001), ("0.5", 0.5), ("5E-1", 0.5), (1, 1)],
)
def test_numbers_that_yaml_reads_as_text_are_numbers(good, written, meant):
    loaded = config.load(changed(good, "channels.inactive_norm", written))
    assert loaded["channels"]["inactive_norm"] == meant


def test_whole_numbers_are_integers_however_written(good):
    for written in ("25", 25.0, "2.5e1"):
        loaded = config.load(changed(good, "activations.top_k", written))
        assert loaded["activations"]["top_k"] == 25
        assert isinstance(loaded["activations"]["top_k"], int)


def test_files_of_the_repository_are_found_from_elsewhere(good):
    good["models"]["net"]["weights"] = "net.pth"
    good["models"]["net"]["factory"] = "tests/models/resnet20.py:resnet20"
    loaded = config.load(good)
    assert loaded["models"]["net"]["weights"] == "net.pth"
    found = loaded["models"]["net"]["factory"]
    assert found == f"{ROOT / 'tests/models/resnet20.py'}:resnet20"


def test_the_home_folder_is_known_by_its_sign(good, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    net = good["models"]["net"]
    net |= {"factory": "~/net.py:make", "weights": "~/net.pth"}
    good["datasets"]["photos"]["path"] = "~/photos"
    good["datasets"]["photos"]["class_names"] = "~/truth.csv"
    loaded = config.load(good)
    assert loaded["models"]["net"]["factory"] == f"{tmp_path}/net.py:make"
    assert loaded["models"]["net"]["weights"] == f"{tmp_path}/net.pth"
    photos = loaded["datasets"]["photos"]
    assert (photos["path"], photos["class_names"]) == (
        f"{tmp_path}/photos",
        f"{tmp_path}/truth.csv",
    )


@pytest.mark.parametrize(
    "name", ["net.ckpt", "model_best.pth.tar", "weights", "Net.PTH", "a b.bin"]
)
def test_weights_may_be_called_anything(good, name, tmp_path):
    (tmp_path / name).touch()
    good["models"]["net"]["weights"] = name
    assert config.check(good)[0] == []


@pytest.mark.parametrize(
    ("written", "meant"), [(None, None), ("64", 64), ([64, 48], [64, 48]), (..., "default")]
)
def test_how_images_are_resized(good, written, meant):
    good["models"]["net"]["input"] = {"crop": 32} | ({} if written is ... else {"resize": written})
    assert config.load(good)["models"]["net"]["input"]["resize"] == meant


def test_a_duplicate_key_is_refused(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("runs: {}\nactivations:\n  top_k: 3\n  top_k: 4\n")
    with pytest.raises(RfatlasError, match=r"activations\.top_k: duplicate key, in lines 3 and 4"):
        config.check_file(file)


def test_yaml_that_cannot_be_read_is_refused_by_name(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("runs: {a: [}\n")
    with pytest.raises(RfatlasError, match="broken.yaml"):
        config.check_file(file)


@pytest.mark.parametrize("file", [*ROOT.glob("config/*.yaml"), *ROOT.glob("tests/configs/*.yaml")])
def test_no_shipped_config_has_a_key_twice(file):
    config.check_file(file)

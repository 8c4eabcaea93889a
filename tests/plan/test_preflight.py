"""What is known before the graph of jobs is built: neither heavy to find out, nor stale."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from rfatlas.errors import RfatlasError
from rfatlas.plan import config, preflight

# Each check runs networks in a process of its own.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

NET = """
from torch import nn


def make(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 5, 3))
"""
INPUT = {"resize": 16, "crop": 16, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A config of one small network on four images in two class folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    for i in range(4):
        file = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(file)
    return {
        "runs": {"a": {"model": "net", "dataset": "photos"}},
        "models": {
            "net": {
                "factory": "net.py:make",
                "weights": "random:0",
                "layers": ["0", "2"],
                "input": INPUT,
            }
        },
        "datasets": {"photos": {"source": "folders", "path": "photos"}},
        "activations": {"top_k": 4},
        "receptive_fields": {"keep": 4},
        "figures": {"patches": 4},
    }


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    """A cache that the tests share which do not look at the cache."""
    return tmp_path_factory.mktemp("preflight")


def prepare(raw, cache=preflight.CACHE):
    return preflight.prepare(config.load(raw), raw, cache)


def no_process(*args, **kwargs):
    raise AssertionError("the cache should have known this")


def test_models_are_described_and_images_counted(raw, known):
    plan = prepare(raw, known)
    assert plan.images["photos"].count == 4
    assert plan.images["photos"].mean_bytes > 0
    layers = {layer["name"]: layer for layer in plan.descriptions["net"]["layers"]}
    assert (layers["0"]["channels"], layers["0"]["height"], layers["0"]["size"]) == (4, 14, 3)
    assert (layers["2"]["channels"], layers["2"]["height"], layers["2"]["size"]) == (5, 12, 5)


def test_the_second_time_comes_from_the_cache_unless_it_is_damaged(raw, monkeypatch):
    plan = prepare(raw)
    for file in preflight.CACHE.rglob("*.json"):
        file.write_text(file.read_text()[:20])
    assert prepare(raw).descriptions == plan.descriptions
    monkeypatch.setattr(subprocess, "run", no_process)
    monkeypatch.setattr(preflight.catalogue, "list_images", no_process)
    raw["models"]["net"]["layers"] = ["0"]
    again = prepare(raw)
    assert (again.descriptions, again.images) == (plan.descriptions, plan.images)


def test_an_edited_factory_and_other_arguments_are_noticed(raw):
    def channels():
        return prepare(raw).descriptions["net"]["layers"][0]["channels"]

    assert channels() == 4
    raw["models"]["net"]["kwargs"] = {"width": 6}
    assert channels() == 6
    Path("net.py").write_text(
        NET.replace("width, 3)", "2 * width, 3)").replace("Conv2d(width", "Conv2d(2 * width")
    )
    assert channels() == 12


def test_an_edit_of_what_the_factory_imports_is_noticed(raw, monkeypatch):
    Path("helper.py").write_text("KERNEL = 3\n")
    text = NET.replace("width, 3)", "width, KERNEL)")
    Path("net.py").write_text(f"from helper import KERNEL\n{text}")
    plan = prepare(raw)
    assert plan.descriptions["net"]["layers"][0]["size"] == 3
    files = [Path(file).name for file in plan.descriptions["net"]["imports"]]
    assert files == ["helper.py", "net.py"]
    Path("helper.py").write_text("KERNEL = 5   # larger\n")
    assert prepare(raw).descriptions["net"]["layers"][0]["size"] == 5
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", no_process)
        assert prepare(raw).descriptions["net"]["layers"][0]["size"] == 5
    Path("helper.py").write_text("oops\n")
    assert "NameError: name 'oops' is not defined" in refused(raw)
    Path("helper.py").unlink()
    assert "No module named 'helper'" in refused(raw)


def test_other_weights_under_the_same_name_are_noticed(raw):
    raw["models"]["net"]["weights"] = "net.pth"
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3)
    )
    torch.save(network.state_dict(), "net.pth")
    prepare(raw)
    damaged = network.state_dict()
    damaged["2.bias"][1] = float("inf")
    torch.save(damaged, "net.pth")
    with pytest.raises(RfatlasError, match=r"models\.net\.weights: .*2\.bias"):
        prepare(raw)


def test_an_image_more_in_a_class_folder_is_noticed(raw, known):
    before = prepare(raw, known).images["photos"]
    Image.new("RGB", (16, 16)).save("photos/b/new.png")
    after = prepare(raw, known).images["photos"]
    assert (before.count, after.count) == (4, 5)
    assert before.digest != after.digest


def test_changes_at_any_depth_are_noticed(raw, known):
    deep = Path("photos/b/c/d/e")
    deep.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(deep / "1.png")
    counts = [prepare(raw, known).images["photos"].count]
    Image.new("RGB", (16, 16)).save(deep / "2.png")
    counts.append(prepare(raw, known).images["photos"].count)
    (deep / "1.png").unlink()
    (deep / "2.png").rename(deep / "3.png")
    counts.append(prepare(raw, known).images["photos"].count)
    shutil.rmtree("photos/b/c")
    counts.append(prepare(raw, known).images["photos"].count)
    assert counts == [5, 6, 5, 4]


def test_a_link_to_a_folder_elsewhere_is_watched(raw, known, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(elsewhere / "1.png")
    Path("photos/c").symlink_to(elsewhere.parent)
    assert prepare(raw, known).images["photos"].count == 5
    Image.new("RGB", (16, 16)).save(elsewhere / "2.png")
    assert prepare(raw, known).images["photos"].count == 6


def test_a_default_number_of_units_fits_the_images(raw, known):
    for section in ("activations", "receptive_fields", "figures"):
        del raw[section]
    plan = prepare(raw, known)
    assert plan.config["activations"]["top_k"] == 4
    assert plan.config["receptive_fields"]["keep"] == plan.config["figures"]["patches"] == 4
    assert "activations.top_k: 4 instead of the default 100: there are 4 images" in plan.notes
    # What the user wrote is as it was, or an error.
    raw["receptive_fields"] = {"top_k": 3, "keep": 2}
    plan = prepare(raw, known)
    assert (
        plan.config["receptive_fields"] | {"top_k": 3, "keep": 2}
        == (plan.config["receptive_fields"])
    )
    raw["receptive_fields"] = {"top_k": 6}
    message = refused(raw, known)
    assert "receptive_fields.top_k: 6 is not allowed" in message and "which is 4" in message


CLASSIFIER = """
from torch import nn


def make(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    )
"""


@pytest.mark.parametrize(("classes", "doubtful"), [(2, False), (7, True)])
def test_other_numbers_of_classes_than_the_network_has_are_a_warning(raw, known, classes, doubtful):
    Path("net.py").write_text(CLASSIFIER)
    raw["models"]["net"] |= {"kwargs": {"classes": classes}, "layers": ["0"]}
    plan = prepare(raw, known)
    text = f"has 2 classes, but the model 'net' tells {classes} apart: labels 0 to 1 follow"
    assert [text in warning for warning in preflight.warnings(plan, "a")] == [True] * doubtful
    assert any(text in note for note in plan.notes) == doubtful


def test_folders_with_numbers_take_them_where_the_network_has_as_many_classes(raw, known):
    Path("net.py").write_text(CLASSIFIER)
    for old, new in (("a", "2"), ("b", "10")):
        Path("photos", old).rename(Path("photos", new))
    raw["models"]["net"] |= {"kwargs": {"classes": 11}, "layers": ["0"]}
    plan = prepare(raw, known)
    assert plan.images["photos"].top_label == 10 and list(plan.images["photos"].classes) == [11]
    assert plan.notes == ("datasets.photos: class names are numbers: 2 of them taken as labels",)
    raw["models"]["net"]["kwargs"] = {"classes": 10}
    plan = prepare(raw, known)
    assert plan.images["photos"].top_label == 1 and not plan.images["photos"].classes
    assert any("10 is not below the network's 10 classes" in note for note in plan.notes)


def refused(raw, cache=preflight.CACHE):
    with pytest.raises(RfatlasError) as error:
        prepare(raw, cache)
    return str(error.value)


def test_layers_whose_names_cannot_be_those_of_files_are_refused(raw):
    Path("net.py").write_text(
        "from collections import OrderedDict\nfrom torch import nn\ndef make():\n"
        "    return nn.Sequential(OrderedDict([('a/b', nn.Conv2d(3, 4, 3)), ('c d', nn.ReLU())]))\n"
    )
    raw["models"]["net"]["layers"] = ["a/b", "c d"]
    assert "models.net.layers: 'a/b' cannot be analysed" in refused(raw)
    raw["models"]["net"]["layers"] = ["c d"]
    assert [layer["name"] for layer in prepare(raw).descriptions["net"]["layers"]] == ["a/b", "c d"]


def test_a_layer_that_the_model_does_not_have_is_refused(raw):
    raw["models"]["net"] |= {"factory": "torchvision.models.resnet18", "layers": ["layr1.0"]}
    message = refused(raw)
    assert "models.net.layers[0]: 'layr1.0'" in message
    assert "did you mean 'layer1.0'?" in message
    assert "allowed are conv1, maxpool, layer1.0, layer1.1" in message


def test_default_layers_are_found_without_blocks_but_not_without_convolutions(raw, known):
    del raw["models"]["net"]["layers"]
    assert prepare(raw, known).descriptions["net"]["default_layers"] == ["0", "2"]
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(768, 2))\n"
    )
    assert "models.net.layers: 'default'" in refused(raw, known)


def test_maps_of_a_layer_that_is_not_analysed_are_refused(raw, known):
    raw["activations"]["keep_maps"] = ["0", "3"]
    message = refused(raw, known)
    assert "activations.keep_maps[1]: '3'" in message and "the layers are 0, 2" in message


def test_groups_of_layers_and_channels_that_there_are_not_are_refused(raw, known):
    raw["ablation_groups"] = {"layers": ["0", "1"], "groups": {"mine": {"2": [0, 99]}}}
    message = refused(raw, known)
    assert (
        "ablation_groups.layers[1]: '1' is not analysed in any run; the layers are 0, 2" in message
    )
    assert "ablation_groups.groups.mine.2: no channel 99; the layer has" in message


def test_more_units_than_images_are_refused(raw, known):
    raw["activations"]["top_k"] = 5
    assert "activations.top_k: 5 is not allowed; it must be at most 4" in refused(raw, known)


def test_labels_that_the_network_has_no_output_for_are_refused(raw, known):
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))\n"
    )
    raw["models"]["net"]["layers"] = ["0"]
    message = refused(raw, known)
    assert "runs.a: the data set 'photos' has a label 1, but the model 'net'" in message
    assert "labels from 0 to 0" in message


def test_a_run_without_a_classifier_or_labels_is_left_out_of_ablation(raw, known):
    plan = prepare(raw, known)
    assert preflight.no_ablation(plan, "a") == "its model 'net' has no classifier"
    Path("net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), "
        "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
    )
    raw["models"]["net"]["layers"] = ["0"]
    assert preflight.no_ablation(prepare(raw, known), "a") == ""
    Path("list.csv").write_text("file,label\nphotos/a/0.png,-1\nphotos/a/2.png,-1\n")
    raw["datasets"]["photos"] = {"source": "list", "path": "list.csv"}
    raw |= {"activations": {"top_k": 2}, "receptive_fields": {"keep": 2}, "figures": {"patches": 2}}
    plan = prepare(raw, known)
    assert "data set 'photos' have no labels" in preflight.no_ablation(plan, "a")


def test_ablation_of_what_is_not_there_is_refused(raw, known):
    raw["ablation"] = {"layers": ["0", "conv1"], "all_modes_layers": ["3"]}
    message = refused(raw, known)
    assert "ablation.layers[1]: 'conv1' is not analysed in any run" in message
    assert "ablation.all_modes_layers[0]: '3' is not analysed in any run" in message


def test_problems_of_models_and_images_come_together(raw):
    raw["models"]["net"]["layers"] = ["7"]
    raw["models"]["other"] = {"factory": "net.py:mak", "weights": "random:1", "input": INPUT}
    raw["runs"]["b"] = {"model": "other", "dataset": "empty"}
    Path("empty").mkdir()
    raw["datasets"]["empty"] = {"source": "folders", "path": "empty"}
    message = refused(raw)
    assert message.startswith("the config has 3 problems:")
    for part in ("models.net.layers[0]: '7'", "models.other.", "'mak'", "datasets.empty.path"):
        assert part in message


def test_a_process_that_dies_is_told_with_its_last_words(raw, monkeypatch):
    Path("net.py").write_text("import os\nos.write(2, b'no such thing')\nos._exit(3)\n")
    message = refused(raw)
    assert "net" in message and "status 3" in message and "no such thing" in message


def test_nothing_of_this_imports_torch(raw):
    Path("config.json").write_text(json.dumps(raw))
    code = (
        "import json, sys\n"
        "from rfatlas import stages\n"
        "from rfatlas.plan import config, estimates, preflight\n"
        "from rfatlas.files import versions\n"
        "raw = json.load(open('config.json'))\npreflight.prepare(config.load(raw), raw)\n"
        "print(sorted({'torch', 'torchvision', 'h5py', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "scripts"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


BROKEN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs=3, kernel=3, breaks=False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 4, kernel)
        self.breaks = breaks
        print("made")

    def forward(self, x):
        if self.breaks:
            raise KeyError("two\\nlines")
        return self.conv1(x)


def leave():
    raise SystemExit(3)
"""


def test_networks_that_fail_are_named_one_by_one(tmp_path):
    (tmp_path / "net.py").write_text(BROKEN)
    size = {"resize": 32, "crop": 32, "mean": [0.5] * 3, "std": [0.2] * 3}

    def entry(name="Net", **kwargs):
        factory = f"{tmp_path / 'net.py'}:{name}"
        return {"factory": factory, "kwargs": kwargs, "weights": "random:1", "input": size}

    models = {
        "sound": entry(),
        "grey": entry(inputs=1),
        "large": entry(kernel=64),
        "breaks": entry(breaks=True),
        "leaves": entry("leave"),
        "negative": entry(inputs=-1),
    }
    found, problems = preflight.describe(models, tmp_path / "cache")
    assert list(found) == ["sound"] and found["sound"]["default_layers"] == ["conv1"]
    assert [problem.split(".")[1] for problem in problems] == list(models)[1:]
    for problem, said in zip(
        problems,
        ["3 x 32 x 32", "3 x 32 x 32", r"KeyError: 'two\nlines'", "SystemExit: 3", "negative"],
        strict=True,
    ):
        assert said in problem and "\n" not in problem

"""Factories of every kind: what they may import, what of it is known, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rfatlas.errors import RfatlasError
from rfatlas.network import factories, model
from rfatlas.network.torchvision_ops import torchvision

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FACTORY = "torchvision.models.resnet18"
KWARGS = {"num_classes": 5}


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_seeded_factories_draw_the_weights_that_torch_draws():
    state = torch.random.get_rng_state()
    built = model.build(FACTORY, KWARGS, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(3)
    assert same(built, torchvision().models.resnet18(**KWARGS))
    assert not same(built, model.build(FACTORY, KWARGS, seed=4))
    assert not built.training


def test_factory_from_a_file(tmp_path):
    file = tmp_path / "my net.py"
    file.write_text("from torch import nn\ndef make(n): return nn.Conv2d(3, n, 3)\nother = 5\n")
    assert model.build(f"{file}:make", {"n": 4}).out_channels == 4
    with pytest.raises(RfatlasError, match="no callable 'mak' .* closest are make"):
        model.build(f"{file}:mak", {})
    with pytest.raises(RfatlasError, match="failed: TypeError"):
        model.build(f"{file}:make", {"m": 4})


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("torchvision.models.resnet19", "no callable 'resnet19'.*resnet1[08]"),
        ("no.such.package", "cannot be imported.*install no into the Python"),
        ("missing.py:make", "no file missing.py"),
        ("builtins.dict", "returned dict; it must return a torch.nn.Module"),
    ],
)
def test_bad_factories_are_refused(factory, message):
    with pytest.raises(RfatlasError, match=message):
        model.build(factory, {})


NET = "from torch import nn\n\n\ndef make():\n    return nn.Conv2d(3, WIDTH, 3)\n"


def write(folder: Path, **files: str) -> Path:
    """Write files below a folder, `a__b` as a/b.py."""
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/', 1)}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def test_a_factory_imports_what_lies_beside_it_and_in_the_working_folder(tmp_path, monkeypatch):
    """At once or when it is called; what is imported is known, packages' files are not."""
    net = f"import numpy\nfrom beside import WIDTH\n{NET}".replace(
        "return", "from pack import late, numbers\n    return"
    )
    write(tmp_path / "code", net=net, beside="from here import WIDTH\n", unused="")
    write(tmp_path / "work", here="WIDTH = 6\n")
    write(tmp_path / "work", pack____init__="", pack__late="", pack__numbers="import json\n")
    monkeypatch.chdir(tmp_path / "work")
    assert model.build("../code/net.py:make", {}).out_channels == 6
    code, work = tmp_path / "code", tmp_path / "work"
    expected = [code / "beside.py", code / "net.py", work / "here.py", work / "pack/__init__.py"]
    expected += [work / "pack/late.py", work / "pack/numbers.py"]
    assert factories.imported() == sorted(map(str, expected))


def test_a_dotted_path_counts_from_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path, mine____init__="", mine__net="from .width import WIDTH\n" + NET)
    write(tmp_path, mine__width="WIDTH = 7\n")
    monkeypatch.chdir(tmp_path)
    assert model.build("mine.net.make", {}).out_channels == 7
    assert [os.path.basename(file) for file in factories.imported()] == [
        *("__init__.py", "net.py", "width.py")
    ]
    model.build(FACTORY, KWARGS)
    assert factories.imported() == []


def test_two_factories_may_have_helpers_of_one_name(tmp_path):
    for folder, width in (("a", 4), ("b", 5)):
        write(tmp_path / folder, net="from helper import WIDTH\n" + NET)
        write(tmp_path / folder, helper=f"WIDTH = {width}\n")
    for folder, width in (("a", 4), ("b", 5), ("a", 4)):
        assert model.build(f"{tmp_path / folder / 'net.py'}:make", {}).out_channels == width
        assert factories.imported() == [
            str(tmp_path / folder / name) for name in ("helper.py", "net.py")
        ]


def test_a_helper_that_fails_or_is_missing_is_named(tmp_path):
    write(tmp_path, net="import helper\n", other="from absent import x\n", helper="1 / 0\n")
    write(tmp_path, inner="from .helper import x\n")
    messages = {"net": "ZeroDivisionError", "other": "No module named 'absent'"}
    for name, message in {**messages, "inner": "relative import .* its dotted path"}.items():
        with pytest.raises(
            RfatlasError, match=rf"{name}\.py:make' cannot be imported: .*{message}"
        ):
            model.build(f"{tmp_path}/{name}.py:make", {})


@pytest.mark.parametrize("place", ["at once", "when it is called"])
def test_a_factory_imports_torchvision_where_only_ours_would_work(tmp_path, place):
    """In a fresh process: where a CPU build of torch meets another torchvision, imports fail."""
    line = "from torchvision.models import resnet18\n"
    text = f"{line}\n\ndef make():\n    return resnet18()\n"
    if place != "at once":
        text = f"def make():\n    {line}    return resnet18()\n"
    write(tmp_path, net=text)
    code = (
        "from rfatlas.network import model; print(model.build('net.py:make', {}).fc.out_features)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SCRIPTS), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "1000", done.stderr

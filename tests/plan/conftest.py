"""A sound config, for the tests of the plan."""

import pytest


@pytest.fixture
def good(tmp_path, monkeypatch):
    """A config that is right, in a folder of its own with the files that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.pth").touch()
    (tmp_path / "net.py").touch()
    (tmp_path / "n{1}.pth").touch()
    (tmp_path / "n{e}t.py").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "truth.csv").touch()
    return {
        "runs": {"a": {"model": "net", "dataset": "photos"}, "b": {"model": "r", "dataset": "s"}},
        "models": {
            "net": {"factory": "net.py:make", "weights": "net.pth"},
            "r": {"factory": "torchvision.models.resnet18", "weights": "random:3"},
        },
        "datasets": {
            "photos": {"source": "folders", "path": "photos"},
            "s": {"source": "scenes"},
        },
    }

"""Labels from names of classes: numbers, WordNet ids, ranks; splits; files that are left out."""

import numpy as np
import pytest

from rfatlas.errors import RfatlasError
from rfatlas.sources import catalogue
from rfatlas.sources.classes import IMAGENET


def album(folder, names, files=("1.jpg", "2.jpg")):
    """A folder with class folders of these names, and its entry of the config."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for file in files:
            (folder / name / file).touch()
    return {"source": "folders", "path": str(folder)}


def labels_of(listing):
    """The label of each class folder."""
    return {name.split("/")[0]: int(label) for name, label in zip(
        listing.names, listing.labels, strict=True)}  # fmt: skip


def wnids():
    rows = [line for line in IMAGENET.read_text().splitlines() if not line.startswith("#")]
    return [row.split()[0] for row in rows]


def test_the_table_of_imagenet_is_torchvisions():
    from rfatlas.network.torchvision_ops import torchvision

    names = torchvision().models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    rows = [line for line in IMAGENET.read_text().splitlines() if not line.startswith("#")]
    assert [row.split(maxsplit=1)[1] for row in rows] == names
    assert len(set(wnids())) == 1000 and wnids() == sorted(wnids())


def test_the_table_has_the_labels_of_photographs(shared_data):
    import csv

    with (shared_data / "photographs" / "labels.csv").open() as file:
        for row in csv.DictReader(file):
            assert wnids()[int(row["label"])] == row["wnid"]


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (["1", "101", "20"], (1000,), {"1": 1, "20": 20, "101": 101}),
        (["001", "101", "020"], (1000,), {"001": 1, "020": 20, "101": 101}),
        (["1", "101", "20"], (1000, 102), {"1": 1, "20": 20, "101": 101}),
        # Beyond the classes, unknown classes, or one that is no number: as ImageFolder ranks them.
        (["1", "101", "20"], (101,), {"1": 0, "101": 1, "20": 2}),
        (["1", "101", "20"], (1000, 3), {"1": 0, "101": 1, "20": 2}),
        (["1", "101", "20"], (), {"1": 0, "101": 1, "20": 2}),
        (["1", "101", "cat"], (1000,), {"1": 0, "101": 1, "cat": 2}),
        (["1", "01"], (1000,), {"01": 0, "1": 1}),
    ],
)
def test_numbers_are_labels_where_they_can_be(tmp_path, names, classes, expected):
    listing = catalogue.list_images(album(tmp_path / "x", names), classes=classes)
    assert labels_of(listing) == expected
    mapped = expected == {name: int(name) for name in names if name.isdecimal()}
    assert listing.mapped == mapped and listing.ranked == (0 if mapped else len(names))
    if mapped:
        assert "3 of them taken as labels" in listing.notes[0]
        assert [listing.class_names[label] for label in expected.values()] == [
            str(label) for label in expected.values()
        ]
    numbers_beyond = bool(classes) and not mapped and names == ["1", "101", "20"]
    assert any("ranked as text" in note for note in listing.notes) == numbers_beyond


def test_a_part_of_the_wordnet_ids_has_imagenets_labels(tmp_path):
    chosen = [wnids()[i] for i in (900, 1, 404)]
    dataset = album(tmp_path / "x", chosen)
    listing = catalogue.list_images(dataset, classes=(1000,))
    assert labels_of(listing) == {wnids()[i]: i for i in (1, 404, 900)}
    assert listing.class_names[1] == "goldfish" and len(listing.class_names) == 1000
    # Another network: ranks. All thousand: ranks, which are the same.
    assert catalogue.list_images(dataset, classes=(3,)).labels.max() == 2
    everything = catalogue.list_images(album(tmp_path / "all", wnids(), ["1.jpg"]), classes=(1000,))
    np.testing.assert_array_equal(everything.labels, np.arange(1000))
    (tmp_path / "x" / "n99999999").mkdir()
    (tmp_path / "x" / "n99999999" / "1.jpg").touch()
    with pytest.raises(RfatlasError, match="imagenet_classes.txt: does not contain .*'n99999999'"):
        catalogue.list_images(dataset, classes=(1000,))


@pytest.mark.parametrize("splits", [["train", "val"], ["val"], ["Train", "Test", "valid"]])
def test_splits_are_asked_about(tmp_path, splits):
    for split in splits:
        dataset = album(tmp_path / "photos" / split, ["cat", "dog"])
    inside = catalogue.list_images(dataset)
    assert labels_of(inside) == {"cat": 0, "dog": 1}
    with pytest.raises(RfatlasError, match=r"class folders inside; which of them\? .*path: .*/"):
        catalogue.list_images({"source": "folders", "path": str(tmp_path / "photos")})
    # Folders of these names that hold the images themselves are classes.
    own = album(tmp_path / "own", splits)
    assert labels_of(catalogue.list_images(own)) == {n: i for i, n in enumerate(sorted(splits))}


def test_other_endings_are_counted_in_one_line(tmp_path):
    files = ["1.jpg", "2.JFIF", "3.jpe", "4.heic", "5.HEIC", "6.avif", "notes", ".hidden.txt"]
    listing = catalogue.list_images(album(tmp_path / "x", ["a", "b"], files))
    assert len(listing) == 6
    assert listing.notes == [
        "8 files of other endings are left out (.heic 4, .avif 2, no ending 2)"
    ]

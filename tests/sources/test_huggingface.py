"""Parquet files and tables of Hugging Face's `datasets`, read in place."""

import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.images import images
from rfatlas.sources import catalogue


def picture(i):
    return Image.fromarray(
        np.random.default_rng(i).integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
    )


@pytest.fixture
def photos(tmp_path):
    """Nine photographs in a folder, with their labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        picture(i).save(folder / f"{i}.png")
    return folder, [4, 0, 2, 2, -1, 1, 3, 0, 4]


def write_parquet(path, files, labels, names=None, paths=True, group=4):
    """A file as the library `datasets` writes it: its columns, features and row groups."""
    label = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64"}
    features = {"image": {"_type": "Image"}, "label": label}
    table = pyarrow.table(
        {
            "image": [
                {"bytes": file.read_bytes(), "path": file.name if paths else None} for file in files
            ],
            "label": pyarrow.array(labels),
        },
        schema=pyarrow.schema(
            [
                (
                    "image",
                    pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
                ),
                ("label", pyarrow.array(labels).type),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group)


def packed(tmp_path, name, dataset, **more):
    listing = catalogue.list_images(dataset, **more)
    images.pack(listing, tmp_path / f"{name}.h5", 20, 16, workers=2)
    with store.open(tmp_path / f"{name}.h5", "images") as file:
        return file["images"][:], file["labels"][:].tolist(), file["names"].asstr()[:].tolist()


def test_parquet_packs_as_the_files_that_it_holds(tmp_path, photos, monkeypatch):
    folder, labels = photos
    files = sorted(folder.iterdir())
    names = ["ant", "bee", "cat", "dog", "elk"]
    write_parquet(
        tmp_path / "hub/data/validation-00000-of-00002.parquet", files[:5], labels[:5], names
    )
    write_parquet(
        tmp_path / "hub/data/validation-00001-of-00002.parquet", files[5:], labels[5:], names
    )
    (tmp_path / "l").write_text("".join(f"photos/{i}.png {n}\n" for i, n in enumerate(labels)))
    monkeypatch.setattr(images, "CHUNK", 2)
    dataset = {"source": "huggingface", "path": str(tmp_path / "hub")}
    found = packed(tmp_path, "hub", dataset)
    expected = packed(tmp_path, "list", {"source": "list", "path": str(tmp_path / "l")})
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1] and found[2] == [file.name for file in files]
    listing = catalogue.list_images(dataset)
    assert listing.class_names == names and (listing.featured, listing.ranked) == (5, 0)
    assert [listing.open(i) for i in range(9)] == [file.read_bytes() for file in files]
    assert "validation-00001-of-00002.parquet: 7.png" in listing.locate(7)
    some = catalogue.list_images(dataset | {"subset": {"size": 4, "seed": 1}})
    assert [some.open(i) for i in range(4)] == [(folder / name).read_bytes() for name in some.names]


def test_splits_of_parquet_are_chosen(tmp_path, photos):
    folder, labels = photos
    files = sorted(folder.iterdir())
    write_parquet(tmp_path / "hub/train-00000-of-00001.parquet", files[:5], labels[:5])
    write_parquet(tmp_path / "hub/test-00000-of-00001.parquet", files[5:], labels[5:])
    dataset = {"source": "huggingface", "path": str(tmp_path / "hub")}
    with pytest.raises(RfatlasError, match="contains the splits test, train; give split"):
        catalogue.list_images(dataset)
    assert len(catalogue.list_images(dataset | {"split": "train"})) == 5
    with pytest.raises(RfatlasError, match="x.split: 'val' is not there; .* has test, train"):
        catalogue.list_images(dataset | {"split": "val"}, key="x")
    one = dataset | {"path": str(tmp_path / "hub/test-00000-of-00001.parquet")}
    assert len(catalogue.list_images(one)) == 4


def test_parquet_without_names_or_labels(tmp_path, photos):
    folder, labels = photos
    files = sorted(folder.iterdir())
    path = tmp_path / "x.parquet"
    write_parquet(path, files, labels, paths=False)
    dataset = {"source": "huggingface", "path": str(path)}
    listing = catalogue.list_images(dataset)
    assert listing.names == [f"x/{i}" for i in range(9)] and listing.class_names == []
    write_parquet(path, files, ["dog", "cat", "dog"] * 3)
    listing = catalogue.list_images(dataset)
    assert listing.labels.tolist() == [1, 0, 1] * 3 and listing.class_names == ["cat", "dog"]
    table = pyarrow.parquet.read_table(path).drop_columns(["label"])
    pyarrow.parquet.write_table(table, tmp_path / "y.parquet")
    listing = catalogue.list_images(dataset | {"path": str(tmp_path / "y.parquet")})
    assert listing.labels.tolist() == [-1] * 9


def test_parquet_refused(tmp_path, photos):
    folder, labels = photos
    path = tmp_path / "x.parquet"
    dataset = {"source": "huggingface", "path": str(path)}
    for content in (b"", b"PAR1 nonsense" * 30):
        path.write_bytes(content)
        with pytest.raises(RfatlasError, match="x.parquet: not a readable Parquet file of images"):
            catalogue.list_images(dataset, key="d")
    pyarrow.parquet.write_table(pyarrow.table({"label": [1]}), tmp_path / "z.parquet")
    with pytest.raises(RfatlasError, match="0 columns of images"):
        catalogue.list_images(dataset | {"path": str(tmp_path / "z.parquet")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(RfatlasError, match=r"contains no files \*\.parquet"):
        catalogue.list_images(dataset | {"path": str(tmp_path / "empty")})
    with pytest.raises(RfatlasError, match="no such file or folder"):
        catalogue.list_images(dataset | {"path": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("seed", range(3))
def test_damaged_parquet_is_refused_or_gives_other_bytes(tmp_path, photos, seed):
    folder, labels = photos
    path = tmp_path / "x.parquet"
    write_parquet(path, sorted(folder.iterdir()), labels)
    content = path.read_bytes()
    for at in np.random.default_rng(seed).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[at] ^= 255
        path.write_bytes(damaged)
        try:
            listing = catalogue.list_images({"source": "huggingface", "path": str(path)}, key="d")
            for i in range(len(listing)):
                listing.open(i)
        except RfatlasError as error:
            assert "x.parquet" in str(error)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_beside_its_images(tmp_path, photos, form):
    folder, labels = photos
    if form == "csv":
        lines = ["file_name,label,text"] + [f"{i}.png,{n},x" for i, n in enumerate(labels)]
    else:
        lines = [json.dumps({"file_name": f"{i}.png", "label": n}) for i, n in enumerate(labels)]
    (folder / f"metadata.{form}").write_text("\n".join(lines) + "\n")
    listing = catalogue.list_images({"source": "huggingface", "path": str(folder)})
    assert listing.labels.tolist() == labels and listing.names == [f"{i}.png" for i in range(9)]
    assert listing.open(3) == (folder / "3.png").read_bytes()
    assert folder / f"metadata.{form}" in listing.watched
    for split in ("train", "validation"):
        shutil.copytree(folder, tmp_path / "both" / split)
    dataset = {"source": "huggingface", "path": str(tmp_path / "both")}
    with pytest.raises(RfatlasError, match="contains the splits train, validation"):
        catalogue.list_images(dataset)
    listing = catalogue.list_images(dataset | {"split": "validation"})
    assert listing.root == tmp_path / "both" / "validation"


def test_metadata_without_labels_or_broken(tmp_path, photos):
    folder, _ = photos
    dataset = {"source": "huggingface", "path": str(folder)}
    (folder / "metadata.csv").write_text("file_name,text\n1.png,one\n2.png,two\n")
    assert catalogue.list_images(dataset).labels.tolist() == [-1, -1]
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png"}\n["2.png"]\n')
    with pytest.raises(RfatlasError, match="metadata.jsonl: line 2: .*must be JSON with file_name"):
        catalogue.list_images(dataset)

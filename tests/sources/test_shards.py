"""WebDataset's tar shards, read in place."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from rfatlas.errors import RfatlasError
from rfatlas.files import store
from rfatlas.images import images
from rfatlas.sources import catalogue


def content(i):
    file = io.BytesIO()
    values = np.random.default_rng(i).integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "JPEG")
    return file.getvalue()


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def samples(first, last, labels):
    members = {}
    for i in range(first, last):
        key = f"sub.dir/{i:06d}"
        members |= {f"{key}.cls": str(labels[i]).encode(), f"{key}.seg.jpg": content(i)}
        members[f"{key}.json"] = b"{}"
    return members


LABELS = [4, 0, 2, 2, -1, 1, 3, 0, 4]


def test_shards_pack_as_the_files_in_them(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CHUNK", 2)
    shard(tmp_path / "wds" / "b" / "00001.tar", samples(5, 9, LABELS))
    shard(tmp_path / "wds" / "00000.tar", samples(0, 5, LABELS))
    lines = []
    for i, label in enumerate(LABELS):
        (tmp_path / f"{i}.jpg").write_bytes(content(i))
        lines.append(f"{i}.jpg {label}\n")
    (tmp_path / "l").write_text("".join(lines))
    found = {}
    for source, path in (("webdataset", "wds"), ("list", "l")):
        listing = catalogue.list_images({"source": source, "path": str(tmp_path / path)})
        images.pack(listing, tmp_path / f"{source}.h5", 20, 16, workers=2)
        with store.open(tmp_path / f"{source}.h5", "images") as file:
            found[source] = file["images"][:], file["labels"][:].tolist()
    np.testing.assert_array_equal(found["webdataset"][0], found["list"][0])
    assert found["webdataset"][1] == found["list"][1] == LABELS
    listing = catalogue.list_images({"source": "webdataset", "path": str(tmp_path / "wds")})
    assert listing.names[7] == "sub.dir/000007.seg.jpg"
    assert listing.locate(7).endswith("wds/b/00001.tar: sub.dir/000007.seg.jpg")
    assert listing.size(7) == len(content(7)) and listing.open(7) == content(7)
    assert {path.name for path in listing.watched} >= {"00000.tar", "00001.tar", "wds", "b"}


def test_one_shard_and_labels_by_name_or_none(tmp_path):
    path = tmp_path / "x.tar"
    dataset = {"source": "webdataset", "path": str(path)}
    shard(path, samples(0, 4, ["dog", "cat\n", "dog", "dog"]))
    listing = catalogue.list_images(dataset)
    assert listing.labels.tolist() == [1, 0, 1, 1] and listing.class_names == ["cat", "dog"]
    assert listing.open(2) == content(2)
    shard(path, {"1.jpg": content(1), "2.png": content(2)})
    assert catalogue.list_images(dataset).labels.tolist() == [-1, -1]


def test_the_same_keys_in_several_shards(tmp_path):
    for name in ("a", "b"):
        shard(tmp_path / "w" / f"{name}.tar", {"1.jpg": content(ord(name)), "1.cls": b"0"})
    listing = catalogue.list_images({"source": "webdataset", "path": str(tmp_path / "w")})
    assert listing.names == ["a.tar/1.jpg", "b.tar/1.jpg"]
    assert [listing.open(0), listing.open(1)] == [content(ord("a")), content(ord("b"))]


def test_shards_refused(tmp_path):
    path = tmp_path / "w" / "x.tar"
    dataset = {"source": "webdataset", "path": str(tmp_path / "w")}

    def refused(members, message):
        shard(path, members)
        with pytest.raises(RfatlasError, match=message):
            catalogue.list_images(dataset, key="d")

    refused({"1.txt": b"x"}, "contains no images")
    refused({"1.jpg": b"x", "2.jpg": b"x", "2.cls": b"0"}, "1.jpg has no .cls .1 such")
    refused({"1.jpg": b"x", "1.png": b"x"}, "x.tar: 1.jpg and 1.png are one sample")
    refused({"1.jpg": b"x", "1.cls": b"0.5"}, "1.jpg: label '0.5'")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(RfatlasError, match=r"d.path: .*w: x.tar: not a whole tar archive"):
        catalogue.list_images(dataset, key="d")
    path.unlink()
    with pytest.raises(RfatlasError, match=r"contains no files \*\.tar"):
        catalogue.list_images(dataset)

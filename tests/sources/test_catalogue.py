"""Listing image sources: every form, the order of labels, and what is refused."""

import csv
import io
import os
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter

import numpy as np
import pytest
import scipy.io

from rfatlas.errors import RfatlasError
from rfatlas.sources import catalogue
from rfatlas.sources.listing import stratified


def put(folder, *names):
    """Write files whose content is their own name; listing never decodes."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def refused(text, dataset, **more):
    with pytest.raises(RfatlasError, match=text):
        catalogue.list_images(dataset, **more)


@pytest.fixture
def devkit(tmp_path):
    """ImageNet's 1,000 leaf classes under ids in an order of their own, and five images."""
    rng = np.random.default_rng(5)
    wnids = [f"n{number:08d}" for number in rng.choice(10**8, 1000, replace=False)]
    words = [f"name {i}, other name {i}" for i in range(1000)]
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 6)]
    ids = [int(i) for i in rng.integers(1, 1001, 5)]

    class Devkit:
        pass

    kit = Devkit()
    kit.names, kit.ids, kit.wnids, kit.words = names, ids, wnids, words
    # Labels by definition: the rank of the class's wnid among the thousand.
    kit.labels = [sorted(wnids).index(wnids[i - 1]) for i in ids]
    kit.folder = tmp_path / "val"
    put(kit.folder, *names)
    kit.truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    kit.truth.write_text("".join(f"{i}\n" for i in ids))
    kit.mat = tmp_path / "meta.mat"
    rows = [(i + 1, wnids[i], words[i], 0) for i in range(1000)]
    # Inner nodes of the hierarchy follow the leaves, with smaller wnids that would shift the ranks.
    rows += [(1001 + i, f"n{i:08d}", "inner node", 2) for i in range(3)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    scipy.io.savemat(kit.mat, {"synsets": np.array(rows, dtype=fields)[:, None]})
    kit.table = tmp_path / "classes.txt"
    kit.table.write_text("".join(f"{n} {wnid} {word}\n" for n, wnid, word, _ in rows))
    kit.kaggle = tmp_path / "LOC_val_solution.csv"
    kit.kaggle.write_text(
        "ImageId,PredictionString\n"
        + "".join(
            f"{name[:-5]},{wnids[i - 1]} 1 2 3 4 {wnids[i - 1]} 5 6 7 8 \n"
            for name, i in reversed(list(zip(names, ids, strict=True)))
        )
    )
    kit.synsets = tmp_path / "LOC_synset_mapping.txt"
    kit.synsets.write_text("".join(f"{w} {n}\n" for w, n in sorted(zip(wnids, words, strict=True))))
    kit.dataset = {"source": "imagenet_val", "path": str(kit.folder)}
    return kit


def test_importing_the_listing_stays_cheap():
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import rfatlas.sources.catalogue; "
        "print([m for m in ('torch', 'torchvision', 'h5py', 'scipy', 'PIL') if m in sys.modules])"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_folders_order_and_labels_are_those_of_image_folder(tmp_path):
    from rfatlas.network.torchvision_ops import torchvision

    torchvision()
    from torchvision.datasets import ImageFolder

    put(tmp_path, "b/2.jpg", "b/10.PNG", "a b/x.jpeg", "a/z.jpg", "a/sub/1.webp", "a/Sub/2.tif")
    put(tmp_path, "a/notes.txt")
    listing = catalogue.list_images({"source": "folders", "path": str(tmp_path)})
    peer = ImageFolder(tmp_path, loader=None)
    assert [
        (str(tmp_path / n), int(y)) for n, y in zip(listing.names, listing.labels, strict=True)
    ] == (peer.samples)
    assert listing.class_names == peer.classes
    assert listing.labels.dtype == np.int64
    assert listing.open(0) == listing.names[0].encode()


def test_folders_flat_and_hidden(tmp_path):
    put(tmp_path, "2.jpg", "10.gif", ".hidden.jpg", ".cache/x.jpg", "__MACOSX/y.jpg", "read.me")
    listing = catalogue.list_images({"source": "folders", "path": str(tmp_path)})
    assert listing.names == ["10.gif", "2.jpg"]
    assert listing.labels.tolist() == [-1, -1]
    assert listing.class_names == []


def test_folders_follow_links_but_no_circle(tmp_path):
    put(tmp_path, "real/1.jpg", "data/a/2.jpg")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    listing = catalogue.list_images({"source": "folders", "path": str(tmp_path / "data")})
    assert listing.names == ["a/2.jpg", "b/1.jpg"]


def test_folders_of_some_wnids_keep_the_labels_of_the_whole(tmp_path, devkit):
    chosen = [devkit.wnids[i] for i in (17, 400, 3)]
    put(tmp_path / "some", *(f"{wnid}/1.jpg" for wnid in chosen))
    dataset = {"source": "folders", "path": str(tmp_path / "some")}
    listing = catalogue.list_images(dataset | {"class_map": str(devkit.synsets)})
    assert sorted(listing.labels) == sorted(sorted(devkit.wnids).index(w) for w in chosen)
    assert catalogue.list_images(dataset).labels.tolist() == [0, 1, 2]
    put(tmp_path / "some", "cats/1.jpg")
    refused("cats", dataset | {"class_map": str(devkit.synsets)})


def test_folders_refused(tmp_path):
    dataset = {"source": "folders", "path": str(tmp_path / "x")}
    refused(r"d\.path: .*x: no such folder", dataset, key="d")
    put(tmp_path / "x", "a/1.txt")
    refused("contains no images.*jpeg", dataset)
    put(tmp_path / "x", "b/1.jpg")
    refused("class folder 'a' contains no images", dataset)
    put(tmp_path / "x", "1.jpg")
    refused("both images .1.jpg. and class folders .b/1.jpg.", dataset)
    refused("labels.*no meaning for source folders; .* imagenet_val", dataset | {"labels": "x.txt"})
    refused("path: missing", {"source": "folders", "path": None})


def test_folder_names_must_be_utf8(tmp_path):
    (tmp_path / "a").mkdir()
    try:
        with open(os.fsencode(tmp_path) + b"/a/\xff.jpg", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    refused("not valid UTF-8", {"source": "folders", "path": str(tmp_path)})


@pytest.mark.parametrize("form", ["mat", "table"])
def test_devkit_ids_are_not_labels(devkit, form):
    listing = catalogue.list_images(
        devkit.dataset | {"labels": str(devkit.truth), "class_map": str(getattr(devkit, form))}
    )
    assert listing.names == devkit.names
    assert listing.labels.tolist() == devkit.labels
    assert devkit.labels != [i - 1 for i in devkit.ids]
    named = dict(zip(devkit.wnids, devkit.words, strict=True))
    assert listing.class_names == [named[w].split(",")[0] for w in sorted(devkit.wnids)]


def test_devkit_labels_follow_the_number_in_the_name(devkit):
    os.remove(devkit.folder / devkit.names[1])
    listing = catalogue.list_images(
        devkit.dataset | {"labels": str(devkit.truth), "class_map": str(devkit.mat)}
    )
    assert listing.labels.tolist() == [devkit.labels[i] for i in (0, 2, 3, 4)]


def test_kaggle_form(devkit):
    listing = catalogue.list_images(
        devkit.dataset | {"labels": str(devkit.kaggle), "class_map": str(devkit.synsets)}
    )
    assert listing.labels.tolist() == devkit.labels
    # Without a class map, the file itself must name all thousand classes.
    refused("names . classes, not ImageNet's 1000", devkit.dataset | {"labels": str(devkit.kaggle)})
    with devkit.kaggle.open("a") as file:
        file.writelines(f"other{i},{wnid} 0 0 1 1\n" for i, wnid in enumerate(devkit.wnids))
    listing = catalogue.list_images(devkit.dataset | {"labels": str(devkit.kaggle)})
    assert listing.labels.tolist() == devkit.labels


def test_imagenet_refused(devkit, tmp_path):
    base, truth, mat = devkit.dataset, str(devkit.truth), str(devkit.mat)
    refused("labels: missing", base)
    refused("class_map: missing.*order of their own", base | {"labels": truth})
    refused("labels: .*no such file", base | {"labels": truth + "x", "class_map": mat})
    refused("has no ILSVRC2012 ids", base | {"labels": truth, "class_map": str(devkit.synsets)})
    refused("not the devkit's meta.mat", base | {"labels": truth, "class_map": mat} | broken(mat))
    short = tmp_path / "short.txt"
    short.write_text("1\n2\n3\n4\n")
    refused(
        "4 lines, but there is an image .*00000005", base | {"labels": str(short), "class_map": mat}
    )
    short.write_text("1\n2\n1001\n4\n5\n")
    refused("line 3: '1001' is not an id", base | {"labels": str(short), "class_map": mat})
    short.write_text("1\n2\nthree\n4\n5\n")
    refused("line 3: 'three' is not an id", base | {"labels": str(short), "class_map": mat})
    short.write_text("cat\n")
    refused("starts with 'cat'; expected", base | {"labels": str(short), "class_map": mat})
    part = tmp_path / "part.txt"
    part.write_text("".join(devkit.table.read_text().splitlines(keepends=True)[:900]))
    refused("holds 900 classes", base | {"labels": truth, "class_map": str(part)})
    put(devkit.folder, "holiday.jpg")
    refused("holiday.jpg.*not named like", base | {"labels": truth, "class_map": mat})
    refused(
        "no line for the image holiday.jpg",
        base | {"labels": str(devkit.kaggle), "class_map": str(devkit.synsets)},
    )


def broken(mat):
    path = mat.replace("meta", "broken")
    with open(path, "wb") as file:
        file.write(b"MATLAB 5.0 MAT-file" + bytes(300))
    return {"class_map": path}


def make_tar(path, members, form=tarfile.PAX_FORMAT):
    """`members`: name -> bytes, None (a folder), or a TarInfo."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, bytes):
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return {"source": "imagenet_tar", "path": str(path)}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_is_read_in_place(devkit, tmp_path, form):
    members = {f"./{name}": os.urandom(700 + i) for i, name in enumerate(reversed(devkit.names))}
    dataset = make_tar(tmp_path / "val.tar", members, form)
    dataset |= {"labels": str(devkit.truth), "class_map": str(devkit.mat)}
    listing = catalogue.list_images(dataset)
    assert listing.names == devkit.names
    assert listing.labels.tolist() == devkit.labels
    assert [listing.open(i) for i in range(5)] == [members[f"./{n}"] for n in devkit.names]
    assert [listing.size(i) for i in range(5)] == [len(members[f"./{n}"]) for n in devkit.names]


def test_tar_of_class_folders_equals_the_unpacked_folder(tmp_path):
    long = "d" * 120 + ".jpg"
    put(tmp_path / "u" / "val", "b/1.jpg", f"a/{long}", "a/s/2.jpg", "c c/é.jpg", "a/x.txt")
    with tarfile.open(tmp_path / "u.tar", "w") as archive:
        archive.add(tmp_path / "u", arcname=".")
    packed = catalogue.list_images({"source": "imagenet_tar", "path": str(tmp_path / "u.tar")})
    plain = catalogue.list_images({"source": "folders", "path": str(tmp_path / "u" / "val")})
    assert packed.names == [f"val/{name}" for name in plain.names]
    assert packed.labels.tolist() == plain.labels.tolist()
    assert packed.class_names == plain.class_names
    assert [packed.open(i) for i in range(4)] == [plain.open(i) for i in range(4)]
    flat = catalogue.list_images(make_tar(tmp_path / "f.tar", {"2.jpg": b"2", "1.jpg": b"1"}))
    assert (flat.names, flat.labels.tolist()) == (["1.jpg", "2.jpg"], [-1, -1])


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return {name: info}


@pytest.mark.parametrize(
    "members",
    [
        {"a/../../evil.jpg": b"x"},
        {"/etc/evil.jpg": b"x"},
        special("a/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("a/hard.jpg", tarfile.LNKTYPE, "a/1.jpg"),
        special("a/device.jpg", tarfile.CHRTYPE),
        special("a/pipe.jpg", tarfile.FIFOTYPE),
    ],
    ids=["dots", "absolute", "symlink", "hardlink", "device", "pipe"],
)
def test_tar_members_pointing_elsewhere_are_refused(tmp_path, members):
    dataset = make_tar(tmp_path / "evil.tar", {"a/1.jpg": b"x"} | members)
    refused("link, a device or a sparse file, or points outside", dataset)


def test_tar_refused(tmp_path):
    dataset = make_tar(tmp_path / "t.tar", {"a/1.jpg": bytes(3000), "a/2.jpg": bytes(3000)})
    path = tmp_path / "t.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:5200])
    refused("not a whole tar archive", dataset)
    path.write_bytes(b"no tar at all" * 100)
    refused("not a whole tar archive", dataset)
    import gzip

    path.write_bytes(gzip.compress(whole))
    refused("compressed with gzip", dataset)
    refused("contains no images", make_tar(path, {"a/x.txt": b"x"}))
    with tarfile.open(path, "w") as archive:
        for name in ("a/1.jpg", "./a/1.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    refused("duplicate entry 'a/1.jpg'", dataset)
    listing = catalogue.list_images(make_tar(path, {"a/1.jpg": bytes(30000)}))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(RfatlasError, match="cut short"):
        listing.open(0)


def test_list_plain_form(tmp_path):
    put(tmp_path, "my photos/a b.jpg", "c.jpg", "#d.jpg")
    file = tmp_path / "list.txt"
    file.write_text("# path label\n\nmy photos/a b.jpg 3\n  c.jpg\t-1  \r\n./#d.jpg 0\n")
    listing = catalogue.list_images({"source": "list", "path": "list.txt"}, base=tmp_path)
    assert listing.names == ["my photos/a b.jpg", "c.jpg", "./#d.jpg"]
    assert listing.labels.tolist() == [3, -1, 0]
    assert listing.class_names == []
    assert listing.open(0) == b"my photos/a b.jpg"
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n\n")
    dataset = {"source": "list", "path": str(file), "class_names": str(tmp_path / "names.txt")}
    assert catalogue.list_images(dataset).class_names == ["ant", "bee", "cat", "dog"]
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    refused("3 names, but labels reach 3", dataset)


@pytest.mark.parametrize("source", ["list", "scenes"])
def test_list_csv_form(tmp_path, source):
    put(tmp_path, "x/a,b.png", "x/c.png", "x/d.png")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["wnid", "label", "class_name", "file"])
        rows.writerows([["n1", 2, "red, dark", "x/a,b.png"], ["n2", 0, "blue", "x/c.png"]])
        rows.writerow(["n1", 2, "red, dark", "x/d.png"])
    listing = catalogue.list_images({"source": source, "path": str(tmp_path / "labels.csv")})
    assert listing.names == ["x/a,b.png", "x/c.png", "x/d.png"]
    assert listing.labels.tolist() == [2, 0, 2]
    assert listing.class_names == ["blue", "1", "red, dark"]


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\na.jpg,3\nb.jpg,-1\n",
        "filename,label\na.jpg,3\nb.jpg,-1\n",
        '"file","label"\n"a.jpg","3"\n"b.jpg","-1"\n',
        '"","path","label"\n"1","a.jpg",3\n"2","b.jpg",-1\n',
        "File;Label\na.jpg;3\nb.jpg;-1\n",
        "label\tfile\n3\ta.jpg\n-1\tb.jpg\n",
        "label\tfile_name\tpath\n3\tx\ta.jpg\n-1\tx\tb.jpg\n",
        "\ufefffile,label\r\na.jpg,3\r\nb.jpg,-1\r\n",
    ],
)
def test_tables_as_others_write_them(tmp_path, text):
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l").write_text(text, encoding="utf-8")
    listing = catalogue.list_images({"source": "list", "path": str(tmp_path / "l")})
    assert (listing.names, listing.labels.tolist()) == (["a.jpg", "b.jpg"], [3, -1])


def test_labels_by_the_names_of_classes(tmp_path, devkit):
    put(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    file = tmp_path / "l.csv"
    dataset = {"source": "list", "path": str(file)}
    file.write_text("file,label\n1.jpg,dog\n2.jpg,black cat\n3.jpg,dog\n")
    listing = catalogue.list_images(dataset, classes=(2,))
    assert listing.labels.tolist() == [1, 0, 1] and listing.class_names == ["black cat", "dog"]
    assert listing.ranked == 2 and not listing.mapped
    (tmp_path / "names.txt").write_text("dog\nbird\nblack cat\n")
    named = dataset | {"class_names": str(tmp_path / "names.txt")}
    listing = catalogue.list_images(named)
    assert listing.labels.tolist() == [0, 2, 0] and listing.ranked == 0
    assert listing.class_names == ["dog", "bird", "black cat"]
    (tmp_path / "names.txt").write_text("dog\nbird\n")
    refused("class_names: .*does not contain the class 'black cat'", named)
    file.write_text("1.jpg n01443537\n2.jpg n01440764\n3.jpg n01443537\n")
    assert catalogue.list_images(dataset, classes=(1000,)).labels.tolist() == [1, 0, 1]
    # One number among them is a mistake, not a name.
    file.write_text("file,label\n1.jpg,dog\n2.jpg,1.0\n3.jpg,dog\n")
    refused("line 2: 1.jpg: label 'dog'; .*only if all labels are names", dataset)


@pytest.mark.parametrize(("disk", "table"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
def test_unicode_forms_of_names_do_not_matter(tmp_path, disk, table):
    on_disk = unicodedata.normalize(disk, "größe/ñandú é.jpg")
    put(tmp_path, on_disk, "größe.txt")
    named = unicodedata.normalize(table, "größe/ñandú é.jpg")
    (tmp_path / "l").write_text(f"{named} 4\n", encoding="utf-8")
    dataset = {"source": "list", "path": str(tmp_path / "l")}
    listing = catalogue.list_images(dataset)
    assert listing.names == [on_disk] and listing.open(0) == on_disk.encode()
    both = unicodedata.normalize(disk, "größe/ñandú é.jpg")
    (tmp_path / "l").write_text(f"{named} 4\n{both} 4\n", encoding="utf-8")
    refused("line 2: .* is listed already in line 1", dataset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n", "line 1: 'a.jpg' has no label"),
        ("a.jpg 0\nb.jpg cat\n", "line 2: b.jpg: label 'cat'"),
        ("a.jpg 0\nb.jpg 1.5\n", "line 2: b.jpg: label '1.5'"),
        ("a.jpg -2\n", "label '-2'"),
        ("a.jpg 99999999999999999999\n", "label '9+'"),
        ("a.jpg 0\nb.jpg 1\n./a.jpg 0\n", "line 3: ./a.jpg is listed already in line 1"),
        ("a.jpg 0\nz.jpg 0\ny.jpg 0\n", r"z.jpg is not there .2 missing"),
        ("# nothing\n", "lists no image"),
        ("file,label\n", "below its header"),
        ("file,class\na.jpg,0\n", "needs the columns file"),
        ("file,label\na.jpg,0,1\n", "line 2: 3 columns"),
        ("file,label\n,0\n", "file name is empty"),
        ("a.jpg,0\nb.jpg,1\n", "separated by commas, it needs a header `file,label`"),
        ("a.jpg;0\nb.jpg;1\n", "separated by semicolons, it needs a header"),
        ("path,label,class_name\na.jpg,0,cat\nb.jpg,0,dog\n", "called 'dog' here and 'cat'"),
    ],
)
def test_list_refused(tmp_path, text, message):
    put(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "l").write_text(text)
    refused(message, {"source": "list", "path": str(tmp_path / "l")})


def test_list_must_be_text(tmp_path):
    (tmp_path / "l").write_bytes(b"\xff\xd8\xff\xe0" * 10)
    refused("not a text file in UTF-8", {"source": "list", "path": str(tmp_path / "l")})
    refused("not a file", {"source": "list", "path": str(tmp_path)})
    refused("no such file", {"source": "list", "path": str(tmp_path / "m")})


def folder_of(tmp_path, counts):
    put(tmp_path / "d", *(f"{c}/{i}.jpg" for c, n in counts.items() for i in range(n)))
    return {"source": "folders", "path": str(tmp_path / "d")}


def test_limit_takes_the_first(tmp_path):
    dataset = folder_of(tmp_path, {"a": 3, "b": 3})
    everything = catalogue.list_images(dataset)
    assert catalogue.list_images(dataset | {"limit": 4}).names == everything.names[:4]
    assert catalogue.list_images(dataset | {"limit": 100}).names == everything.names
    both = catalogue.list_images(dataset | {"limit": 4, "subset": {"size": 3, "seed": 1}})
    assert set(both.names) < set(everything.names[:4]) and len(both) == 3


@pytest.mark.parametrize("size", [1, 3, 4, 7, 11, 13, 15])
def test_subset_is_stratified(tmp_path, size):
    counts = {"a": 6, "b": 2, "c": 6, "d": 1}
    dataset = folder_of(tmp_path, counts)
    everything = catalogue.list_images(dataset)
    seen = set()
    for seed in range(12):
        listing = catalogue.list_images(dataset | {"subset": {"size": size, "seed": seed}})
        assert len(listing) == size
        positions = [everything.names.index(name) for name in listing.names]
        assert positions == sorted(positions)
        assert listing.labels.tolist() == everything.labels[positions].tolist()
        taken = Counter(name[0] for name in listing.names)
        # Equal shares: a class that still has images is at most one behind any other.
        for one in counts:
            if taken[one] < counts[one]:
                assert taken[one] >= max(taken.values()) - 1
        seen.add(tuple(listing.names))
        again = catalogue.list_images(dataset | {"subset": {"size": size, "seed": seed}})
        assert again.names == listing.names
    assert len(seen) > 1 or size == 15


def test_subset_draws_each_image_alike():
    names = [str(i) for i in range(10)]
    labels = np.zeros(10, dtype=np.int64)
    drawn = Counter()
    for seed in range(1000):
        drawn.update(stratified(names, labels, 3, seed).tolist())
    # 300 expected each, standard deviation 14.5.
    assert all(235 < drawn[i] < 365 for i in range(10))


def test_subset_refused(tmp_path):
    dataset = folder_of(tmp_path, {"a": 3})
    refused("subset.size: 4, but there are 3", dataset | {"subset": {"size": 4, "seed": 0}})
    refused(
        "subset.size: 3, but there are 2", dataset | {"limit": 2, "subset": {"size": 3, "seed": 0}}
    )


def test_scenes_are_counted_before_they_are_drawn():
    dataset = {"source": "scenes", "count": 10, "size": 64, "seed": 1}

    def count(**keys) -> int:
        return catalogue.count_scenes(dataset | keys, "datasets.scenes")

    assert count() == 10
    assert count(limit=4) == 4
    assert count(limit=40, subset={"size": 7, "seed": 0}) == 7
    with pytest.raises(RfatlasError, match="10 images"):
        count(subset={"size": 11, "seed": 0})


def test_files_and_keys_that_the_rule_depends_on():
    every = {"path": "p", "labels": "l", "class_map": "m", "class_names": None, "limit": None}
    every |= {"count": 10, "size": 64, "seed": 1, "subset": {"size": 3, "seed": 0}}
    assert catalogue.input_files(every | {"source": "scenes"}, "x") == {
        "labels": "results/scenes/x/labels.csv",
        "drawn": "results/scenes/x/images",
    }
    assert catalogue.input_files(every | {"source": "imagenet_tar"}, "x") == {
        "path": "p",
        "truth": "l",
        "class_map": "m",
    }
    folder = every | {"source": "imagenet_val"}
    assert catalogue.input_files(folder, "x") == {"truth": "l", "class_map": "m"}
    # A change of the scenes' defaults must not rerun photographs.
    assert list(catalogue.used_keys(folder)) == ["class_map", "labels", "path", "source", "subset"]
    assert "count" in catalogue.used_keys(every | {"source": "scenes"})


def test_digest_tells_listings_apart(tmp_path):
    dataset = folder_of(tmp_path, {"a": 3, "b": 1})
    first = catalogue.list_images(dataset)
    assert catalogue.list_images(dataset).digest() == first.digest()
    assert catalogue.list_images(dataset | {"limit": 3}).digest() != first.digest()
    put(tmp_path / "d", "a/9.jpg")
    assert catalogue.list_images(dataset).digest() != first.digest()


def test_shared_photographs(shared_data):
    listing = catalogue.list_images(
        {"source": "list", "path": str(shared_data / "photographs" / "labels.csv")}
    )
    assert len(listing) == 400
    assert len(set(listing.labels.tolist())) == 400
    assert listing.class_names[1] == "goldfish"

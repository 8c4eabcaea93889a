"""Fuzzed archives, folders and tables of photographs: each is refused with a clear line, or the
listing is that of what was planted, and nothing outside is ever named.
"""

import gzip
import io
import os
import tarfile
from pathlib import Path

import fuzzing
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standins import imagenet

from rfatlas.plan import preflight
from rfatlas.sources import catalogue

BLOCK = tarfile.BLOCKSIZE
NAME = st.one_of(
    st.sampled_from(
        [
            *("a/1.png", "a/2.png", "b/1.png", "b/2.jpg", "./a/1.png", "a//1.png", "a/./2.png"),
            *("../x.png", "a/../../x.png", "/etc/x.png", "//x.png", "..", ".", "", "/", "a/.."),
            *("a/1.png\0b", "a/\x1b[2J.png", "a/\n.png", "a/\udcff.png", "a/{0}.png", "A/1.PNG"),
            *(".hidden/1.png", "__MACOSX/1.png", "c/" * 60 + "1.png", "a/" + "n" * 300 + ".png"),
            *("a" * 5000 + ".png", "C:\\x.png", "a\\..\\x.png", "1.png"),
        ]
    ),
    st.text(max_size=12).map(lambda text: f"{text}.png"),
)
KIND = st.sampled_from(
    [tarfile.REGTYPE] * 8
    + [tarfile.DIRTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE]
    + [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z", b"\0"]
)
SIZE = st.one_of(
    st.integers(0, 1500),
    st.sampled_from([0, 511, 512, 513, 8**11 - 1, 8**11, 2**62, 2**95, -1, -512]),
)


@st.composite
def member(draw):
    """The bytes of a member, whose header may lie about its size."""
    info = tarfile.TarInfo(draw(NAME))
    info.type = draw(KIND)
    info.linkname = draw(st.sampled_from(["", "a/1.png", "/etc/passwd", "../../x"]))
    content = draw(st.binary(max_size=600))
    info.size = draw(st.sampled_from([len(content)] * 4 + ["lie"]))
    if info.size == "lie":
        info.size = draw(SIZE)
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    keys = st.sampled_from(["size", "path", "linkpath", "GNU.sparse.size", "GNU.sparse.map", "x"])
    info.pax_headers = draw(st.dictionaries(keys, st.one_of(NAME, SIZE.map(str)), max_size=2))
    try:
        header = info.tobuf(form, errors="surrogateescape")
    except (ValueError, UnicodeError, OverflowError):  # this form has no words for it
        header = tarfile.TarInfo("a/9.png").tobuf()
    return header + content + b"\0" * (-len(content) % BLOCK)


def listed(walled: Path, kind: str, dataset: dict):
    """The listing of a data set (None if it is refused), of which every image lies inside."""
    listing = None
    with fuzzing.trying(kind) as fate:
        listing = catalogue.list_images({"source": "imagenet_tar"} | dataset, walled, "datasets.x")
        assert len(listing) == len(set(listing.names)) == len(listing.labels) > 0
        assert listing.labels.max() < len(listing.class_names) or not listing.class_names
        for index, name in enumerate(listing.names):
            assert not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name
            if listing.sizes is not None:
                assert len(listing.open(index)) == listing.sizes[index]
    return listing, fate


@given(st.lists(member(), max_size=5), fuzzing.DAMAGE)
def test_archives(walled, members, damage):
    data = b"".join(members) + b"\0" * 2 * BLOCK
    (walled / "x.tar").write_bytes(fuzzing.damaged(data, damage))
    listed(walled, "tar archive", {"path": "x.tar"})
    assert os.listdir(walled) == ["x.tar"]


def archive(count: int = 6) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for i in range(count):
            info = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png")
            info.size = 700 + i
            tar.addfile(info, io.BytesIO(bytes([i + 1]) * info.size))
    return file.getvalue()


@given(fuzzing.DAMAGE)
def test_a_damaged_archive_never_lists_fewer_images(walled, damage):
    (walled / "x.tar").write_bytes(fuzzing.damaged(archive(), damage))
    listing, _ = listed(walled, "tar archive, damaged", {"path": "x.tar"})
    if listing is not None:
        assert sorted(listing.names) == sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(6))
        assert sorted(listing.sizes) == [700 + i for i in range(6)]


def pax(count: int) -> bytes:
    """Extended headers, each of the one behind it."""
    info = tarfile.TarInfo("a/1.png")
    info.type, info.size = tarfile.XHDTYPE, 0
    return info.tobuf(tarfile.USTAR_FORMAT) * count


def oversized(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("a/1.png")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a whole tar archive"),
        (b"\0" * 10240, "no image"),
        (gzip.compress(archive()), "compressed with gzip"),
        (gzip.compress(b"\0" * 10**8), "compressed with gzip"),
        (pax(5000) + archive(), "not a whole tar archive"),
        (oversized(tarfile.XHDTYPE, 2**60) + archive(), "not a whole tar archive"),
        (oversized(tarfile.XGLTYPE, 8**11 - 1) + archive(), "not a whole tar archive"),
        (oversized(tarfile.GNUTYPE_LONGNAME, 2**62) + archive(), "not a whole tar archive"),
        (oversized(tarfile.REGTYPE, 2**70) + archive(), "not a whole tar archive"),
        (archive() + archive(), "not a whole tar archive"),
        (archive()[: 3 * 3 * BLOCK], "not a whole tar archive"),
        (archive()[: 3 * 3 * BLOCK + 100], "not a whole tar archive"),
    ],
    ids=range(12),
)
def test_hostile_archives(walled, data, said):
    (walled / "x.tar").write_bytes(data)
    _, fate = listed(walled, "tar archive, hostile", {"path": "x.tar"})
    assert said in fate.message
    (walled / "x.tar").unlink()


# ---- tables

PIECE = st.one_of(
    st.binary(min_size=1, max_size=6),
    st.text(min_size=1, max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [
            *(b"\n", b"\r", b",", b'"', b"\0", b"\x0b", b"\x1c", b"\xe2\x80\xa8", b"\xff", b"# "),
            *(b" -1", b" 1e3", b" 999999", b" 1000000", b" \xd9\xa3", b"..", b"/", b"../" * 9),
            *(b" ", b"\n\n", b"\t", b"1", b"0"),
            *(
                b"~nobody/x.png",
                b"x" * 300 + b"/x.png",
                b"/dev/zero 0\n",
                b"a" * 140_000,
                b"n00000000",
            ),
        ]
    ),
)
DAMAGES = st.lists(st.tuples(st.floats(0, 1), st.booleans(), PIECE), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Stand-ins for ImageNet, with two lists beside them."""
    folder = tmp_path_factory.mktemp("tables")
    imagenet(folder, flat=20, archived=1000)
    top = folder / "data" / "imagenet"
    names = sorted(os.listdir(top / "val"))
    lines = [f"val/{name} {i % 3}" for i, name in enumerate(names)]
    (top / "plain.txt").write_text("# images\n" + "\n".join(lines) + "\n")
    rows = [f"val/{name},{i % 3},class {i % 3}" for i, name in enumerate(names)]
    (top / "table.csv").write_text("file,label,class_name\n" + "\n".join(rows) + "\n")
    (top / "names.txt").write_text("cat\ndog\nbird\n")
    return top


FORMS = {
    "list": ({"source": "list", "path": "plain.txt"}, "path"),
    "csv": ({"source": "list", "path": "table.csv"}, "path"),
    "class names": (
        {"source": "list", "path": "plain.txt", "class_names": "names.txt"},
        "class_names",
    ),
    "solution": (
        {
            "source": "imagenet_val",
            "path": "val",
            "labels": "LOC_val_solution.csv",
            "class_map": "LOC_synset_mapping.txt",
        },
        "labels",
    ),
    "synsets": (
        {
            "source": "imagenet_val",
            "path": "val",
            "labels": "LOC_val_solution.csv",
            "class_map": "LOC_synset_mapping.txt",
        },
        "class_map",
    ),
    "meta.mat": (
        {
            "source": "imagenet_val",
            "path": "val",
            "labels": "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            "class_map": "ILSVRC2012_devkit_t12/data/meta.mat",
        },
        "class_map",
    ),
}


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"meta.mat"}))
@given(damages=DAMAGES)
def test_tables(tables, form, damages):
    check_table(tables, form, damages)


# Each is read in a process of its own.
@settings(max_examples=max(5, settings().max_examples // 20))
@given(damages=DAMAGES)
def test_tables_of_matlab(tables, damages):
    check_table(tables, "meta.mat", damages)


def check_table(tables, form, damages):
    dataset, key = FORMS[form]
    file = tables / dataset[key]
    data = file.read_bytes()
    for where, inserts, piece in damages:
        at = int(where * len(data))
        data = data[:at] + piece + data[at if inserts else at + len(piece) :]
    damaged = file.with_name(f"damaged{file.suffix}")
    damaged.write_bytes(data)
    dataset = dataset | {key: str(damaged.relative_to(tables))}
    with fuzzing.trying(f"table, {form}"):
        listing = catalogue.list_images(dataset, tables, "datasets.x")
        assert len(listing) == len(set(listing.names)) == len(listing.labels)
        assert listing.labels.min() >= -1
        assert listing.labels.max() < len(listing.class_names) or not listing.class_names
        assert all((listing.root / name).exists() for name in listing.names)


@pytest.mark.parametrize("form", FORMS)
def test_the_tables_are_taken_as_they_are(tables, form):
    assert len(catalogue.list_images(FORMS[form][0], tables)) == 20


# ---- folders


ODD_FILES = {
    "pipe.png": lambda file: os.mkfifo(file),
    "zero.png": lambda file: file.symlink_to("/dev/zero"),
    "broken.png": lambda file: file.symlink_to("nowhere"),
    "itself.png": lambda file: file.symlink_to(file.name),
    "folder.png": lambda file: file.mkdir(),
    "circle": lambda file: file.symlink_to("."),
    "line\nbreak.png": lambda file: file.touch(),
    "\x1b[31mred.png": lambda file: file.touch(),
    "\udcff.png": lambda file: file.touch(),
    "n" * 251 + ".png": lambda file: file.touch(),
    ".png": lambda file: file.touch(),
    "empty": lambda file: file.mkdir(),
    "{0}.png": lambda file: file.touch(),
}


@given(st.sets(st.sampled_from(sorted(ODD_FILES)), max_size=4), st.sets(st.integers(1, 3)))
def test_folders(tmp_path_factory, odd, plain):
    folder = tmp_path_factory.mktemp("folders", numbered=True)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in plain:
            (folder / name / f"{i}.png").write_bytes(b"x")
    for name in odd:
        ODD_FILES[name](folder / "a" / name)
    dataset = {"source": "folders", "path": str(folder), "limit": None, "subset": None}
    dataset |= {"labels": None, "class_map": None, "class_names": None}
    with fuzzing.trying("folder"):
        found = preflight.count_images(dataset, folder / "cache", "datasets.x")
        files = {name for name in odd if name.endswith(".png") and name != "folder.png"} - {".png"}
        assert found.count == 2 * len(plain) + len(files)


def test_what_is_not_there_is_refused(walled):
    for path in ("~nobody_of_that_name/x", "x" * 300, "a\0b", "nowhere", "", "/dev/null"):
        for source in ("folders", "list", "imagenet_tar"):
            dataset = {"source": source, "path": path}
            with fuzzing.trying("path") as fate:
                catalogue.list_images(dataset, walled, "datasets.x")
            assert fate.refused and fate.message.startswith("datasets.x.path")

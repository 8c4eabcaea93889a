"""Source `imagenet_tar`: an uncompressed tar archive, read in place (ILSVRC2012_img_val.tar).

With `labels` its images are labelled as those of `imagenet_val`; without, it is an archive of class
folders, or of images alone (labels -1).
"""

import posixpath
import tarfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from rfatlas.errors import RfatlasError
from rfatlas.sources import imagenet
from rfatlas.sources.folders import by_class
from rfatlas.sources.listing import Listing
from rfatlas.sources.source import Source, is_image, left_out

#: Bytes behind the last member of an archive that must be zero as far as they are there.
_END = 1 << 20
# What tarfile raises on damaged archives.
_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class ImagenetTar(Source):
    """An archive of ImageNet's validation images, or of class folders."""

    keys = ("path", "labels", "class_map", "class_names")

    asks_classes = True

    def listing(self) -> Listing:
        places, folders = index_tar(self, self.path)
        images = [name for name in places if is_image(name)]
        if not images:
            raise self.no_image()
        if self.labels is not None:
            names = sorted(images, key=posixpath.basename)
            labels, class_names = imagenet.labelled(self, [posixpath.basename(n) for n in names])
            listing = Listing(self.name, self.path, names, labels, class_names)
        else:
            prefix = _common_folder(images)
            inner = [n.removeprefix(prefix).split("/")[0] for n in folders if n.startswith(prefix)]
            listing = by_class(
                self,
                [name.removeprefix(prefix) for name in images],
                [name for name in inner if name and is_image(f"{name}/x.png")],
            )
            listing.names = [prefix + name for name in listing.names]
        listing.notes += left_out(places)
        offsets, sizes = np.array([places[name] for name in listing.names], dtype=np.int64).T
        listing.offsets, listing.sizes = offsets.copy(), sizes.copy()
        return listing


def _common_folder(images: Collection[str]) -> str:
    """Return the folder, with its slash, in which all class folders lie, or ""."""
    common = posixpath.commonpath([posixpath.dirname(posixpath.dirname(n)) for n in images])
    return common and f"{common}/"


def index_tar(source: Source, path: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return ({file: (offset, size)}, folder names) of an uncompressed tar archive.

    Reads the headers only. Members that could point outside the archive are refused, although
    nothing is ever unpacked: such an archive is damaged or hostile.
    """
    # One of several archives is named.
    inside = "" if path == source.path else f"{path.name}: "

    def wrong(problem: str) -> RfatlasError:
        return source.wrong(inside + problem)

    with path.open("rb") as file:
        start = file.read(6)
    for magic, form in _COMPRESSED.items():
        if start.startswith(magic):
            raise wrong(
                f"compressed with {form}; decompress it once, only a plain tar can be read in place"
            )
    total = path.stat().st_size
    places: dict[str, tuple[int, int]] = {}
    folders = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if (
                    member.name.startswith("/")
                    or ".." in member.name.split("/")
                    or not (member.isfile() or member.isdir())
                    or member.issparse()
                ):
                    raise wrong(
                        f"the member {member.name!r} is a link, a device or a sparse file, or "
                        "points outside the archive; make an archive of plain files and folders"
                    )
                name = posixpath.normpath(member.name)
                if member.isdir():
                    folders.append(name)
                    continue
                if name in places:
                    raise wrong(f"duplicate entry {name!r}")
                if member.size < 0 or member.offset_data + member.size > total:
                    raise tarfile.ReadError(f"{name} reaches past the end of the archive")
                places[name] = (member.offset_data, member.size)
            # tarfile takes a damaged header for the end of the archive.
            with path.open("rb") as file:
                file.seek(archive.offset)
                rest = file.read(_END)
                if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
                    raise tarfile.ReadError(
                        f"byte {archive.offset} is neither a member nor the end"
                    )
    except _DAMAGE as error:
        raise wrong(f"not a whole tar archive ({error}); fetch it again") from error
    return places, folders

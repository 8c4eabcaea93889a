"""Throughput of packing against a bare multi-process PIL loop over the same files.

Both decode, convert, resize to 256 and crop to 224 with the same number of worker processes,
started anew each time. The peer does nothing else: it returns nothing and stores nothing. Ours also
hashes each file, writes the packed file, and confirms it on disk. Rounds
alternate; medians are compared.

Run: python tests/benchmarks/images.py [--folder photographs] [--images 800] [--workers 2]
Without a folder: the photographs of ../shared/data, or made-up ones of ImageNet's usual size.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from rfatlas.images import images
from rfatlas.sources import catalogue, source

ROOT = Path(__file__).resolve().parents[2]

RESIZE, CROP = 256, 224


def make_photographs(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels and about 110 kB: blobs of all sizes and a little noise."""
    rng = np.random.default_rng(0)
    for i in range(count):
        array = rng.normal(0, 9, (375, 500, 3))
        for side in (3, 6, 12, 25, 50):
            blobs = rng.normal(128 / 5, 25, (side, side, 3)).clip(0, 255).astype(np.uint8)
            array += np.asarray(Image.fromarray(blobs).resize((500, 375), Image.Resampling.BICUBIC))
        Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(
            folder / f"{i:04d}.jpg", quality=92
        )


def link(files: list[Path], folder: Path, count: int) -> list[Path]:
    """`count` names for the files in turn: enough work that starting processes matters little."""
    links = []
    for i in range(count):
        file = files[i % len(files)].resolve()
        links.append(folder / f"{i:06d}{file.suffix}")
        links[-1].symlink_to(file)
    return links


def peer_one(path: Path) -> None:
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    scale = RESIZE / min(width, height)
    size = (RESIZE, int(height * scale)) if width <= height else (int(width * scale), RESIZE)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - CROP) // 2, (size[1] - CROP) // 2
    np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def peer(paths: list[Path], workers: int) -> None:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for _ in pool.imap_unordered(peer_one, paths, chunksize=images.CHUNK):
            pass


def seconds(function, *args, **kwargs) -> float:
    started = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "shared/data/photographs")
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # On a disk, not in memory: the packed file belongs to the work.
    with tempfile.TemporaryDirectory(dir=ROOT / "results") as temporary:
        folder = Path(temporary)
        for name in ("links", "made"):
            (folder / name).mkdir()
        files = [
            file
            for file in sorted(options.folder.rglob("*"))
            if file.name.lower().endswith(source.IMAGE_SUFFIXES)
        ]
        if not files:
            make_photographs(folder / "made", 100)
            files = sorted((folder / "made").iterdir())
        paths = link(files, folder / "links", options.images)
        listing = catalogue.list_images({"source": "folders", "path": str(folder / "links")})
        output = folder / "packed.h5"
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        peer(paths[:50], options.workers)  # the files come into the disk cache
        for number in range(options.repeats):
            for name in ("ours", "peer") if number % 2 else ("peer", "ours"):
                if name == "peer":
                    times[name].append(seconds(peer, paths, options.workers))
                else:
                    arguments = (listing, output, RESIZE, CROP)
                    times[name].append(seconds(images.pack, *arguments, workers=options.workers))
                    output.unlink()
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"{len(paths)} files ({len(files)} different), {options.workers} workers: "
            + ", ".join(f"{name} {len(paths) / value:.0f}/s" for name, value in medians.items())
        )
        print(json.dumps({"ratio": round(medians["peer"] / medians["ours"], 3)}))


if __name__ == "__main__":
    main()

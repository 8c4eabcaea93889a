"""Merging the ranges of a pass over 1.28 million images: time and memory.

1,000 range files of one layer of 256 channels (14 x 14 units, top-K 100), each of 1,281 images with
their maxima, means and logits of 1,000 classes, are invented and written, then merged in a process
of its own. Invented: normal values; the top lists are the largest maxima of each range, so that
every range offers to the lists, as photographs in random order would. With all numbers as they
stand it takes about 18 GB of disk for a while, most of it the logits; fewer --classes take less.

The last line is one JSON object of what was used over what is allowed, `time` of ten minutes and
`memory` of 2 GB (of which at most 1 lets the test pass), with the figures beside them. Other
processes on the machine lengthen the seconds, not `cpu_s`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rfatlas.fields import activations, summaries, top_lists
from rfatlas.files import store

LAYER, CHANNELS, SIDE, TOP_K = "layer3.0", 256, 14, 100
SECONDS, MEGABYTES = 600, 2000

MERGE = """
import resource, sys
from pathlib import Path
from rfatlas.fields import activations
folder = Path(sys.argv[1])
ranges = sorted(folder.glob("ranges/*.h5"), key=lambda path: int(path.stem.split("-")[0]))
activations.merge(ranges, folder / "activations.h5")
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss / 1e3, used.ru_utime + used.ru_stime)
"""


def write_range(folder: Path, start: int, stop: int, total: int, classes: int) -> None:
    """Write the invented file of the images [start, stop) of `total`."""
    random, images = np.random.default_rng(start), stop - start
    peaks = random.standard_normal((images, CHANNELS), np.float32)
    order = np.argsort(-peaks, axis=0, kind="stable")[:TOP_K].T
    best = {
        "value": np.take_along_axis(peaks.T, order, axis=1),
        "image": (order + start).astype(np.int32),
        "position": random.integers(0, SIDE**2, order.shape, dtype=np.int32),
    }
    summary = summaries.Summary(LAYER, CHANNELS, SIDE, SIDE, True, TOP_K, start, stop)
    summary.mean = peaks.mean(axis=0, dtype=np.float64)
    summary.m2 = np.full(CHANNELS, float(images * SIDE**2))
    summary.maximum = peaks.max(axis=0).astype(np.float64)
    summary.positive = np.full(CHANNELS, images * SIDE**2 // 2)
    for name in ("top", "top_per_image"):
        summary.lists[name] = top_lists.TopList(**best)
    attrs = store.provenance(activations.STAGE, {"range": [start, stop]})
    attrs |= {"start": start, "stop": stop, "total": total}
    with store.create(folder / f"{start}-{stop}.h5", attrs) as file:
        summary.write(file)
        file[LAYER]["image_max"] = peaks
        file[LAYER]["image_mean"] = peaks / 4
        file[LAYER]["class_mean"] = np.zeros((classes, CHANNELS))
        file["output/logits"] = random.standard_normal((images, classes), np.float32)
        file["output/labels"] = random.integers(0, classes, images)


def main() -> None:
    """Write the ranges, merge them in a process of its own, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranges", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1281, help="of each range")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    options = parser.parse_args()
    total = options.ranges * options.images
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, began = Path(name), time.perf_counter()
        for start in range(0, total, options.images):
            stop = start + options.images
            write_range(folder / "ranges", start, stop, total, options.classes)
        size = sum(path.stat().st_size for path in folder.rglob("*.h5"))
        print(f"{options.ranges} ranges, {size / 1e9:.2f} GB, {time.perf_counter() - began:.0f} s")
        # What was written lies on the disk before the clock starts.
        os.sync()
        began = time.perf_counter()
        command = [sys.executable, "-c", MERGE, str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - began
        written = (folder / "activations.h5").stat().st_size
    megabytes, processor = (float(word) for word in done.stdout.split())
    found = {
        "time": seconds / SECONDS,
        "memory": megabytes / MEGABYTES,
        "seconds": seconds,
        "cpu_s": processor,
        "peak_mb": megabytes,
        "written_gb": written / 1e9,
    }
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()

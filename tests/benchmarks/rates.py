"""Measure the rates behind the estimates: `python tests/benchmarks/rates.py [--write]`.

Each rate is the work that one core does per second, measured on one thread with torchvision's
resnet18 at 224 px (random weights) and on pictures made here. Times are processor seconds, the best
of three, so that other load matters little. With --write the rates that are measured here replace
those in resources/rates.csv; rates with another source (a GPU, a whole run) stay as they are. Takes
about two minutes.
"""

import argparse
import csv
import io
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rfatlas.ablation import ablate
from rfatlas.fields import receptive_fields
from rfatlas.files import store
from rfatlas.files.task import Task
from rfatlas.images import scenes
from rfatlas.images.decoding import decode
from rfatlas.network import model
from rfatlas.plan import estimates

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "tests/benchmarks/rates.py"
INPUT = {"resize": 224, "crop": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def best(work: Callable[[], object], repeats: int = 3) -> float:
    """Processor seconds, of this process and those it starts, of the fastest of some calls."""

    def now() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    seconds = []
    for _ in range(repeats):
        start = now()
        work()
        seconds.append(now() - start)
    return min(seconds)


def start_up() -> dict[str, float]:
    def run(module: str) -> None:
        subprocess.run([sys.executable, "-c", f"import rfatlas.{module}"], check=True)

    return {
        "start_plain": best(lambda: run("tables.channels")),
        "start_torch": best(lambda: run("fields.receptive_fields")),
    }


def picture(width: int, height: int) -> bytes:
    """A JPEG of smooth noise, about as many bytes per pixel as a photograph."""
    from PIL import Image

    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    noise = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = random.normal(0, 9, (height, width, 3)) + np.asarray(noise)
    file = io.BytesIO()
    Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def decoding() -> dict[str, float]:
    """Seconds per file and megabytes per second, from a small and a large picture."""
    small, large = picture(32, 32), picture(500, 375)
    each = [
        best(lambda data=data, size=size: [decode(data, size, size) for _ in range(30)]) / 30
        for data, size in ((small, 32), (large, 224))
    ]
    rate = (len(large) - len(small)) / 1e6 / (each[1] - each[0])
    return {"decode_file": each[0], "decode_bytes": rate}


def drawing() -> dict[str, float]:
    return {"scenes": 40 * 64**2 / 1e6 / best(lambda: scenes.draw(40, 64, 0))}


def networks() -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    config = {"factory": "torchvision.models.resnet18", "kwargs": {}, "weights": "random:0"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        network = model.make(config)
        traced = model.trace(network, INPUT)
        model.save(network, traced, path, config, INPUT)
        loaded = model.load(path)
        description = model.describe(network, traced, INPUT)
        found = forward(loaded, description)
        found |= fields(loaded, description, Path(folder))
        found |= ablation(loaded, description)
    return found


def forward(loaded: model.LoadedModel, description: dict) -> dict[str, float]:
    import torch

    extractor = loaded.graph.extractor(description["default_layers"])
    random = np.random.default_rng(0)
    batch = loaded.preprocess(random.integers(0, 256, (8, 224, 224, 3), dtype=np.uint8))
    with torch.inference_mode():
        return {"forward_cpu": 8 * description["gflops"] / best(lambda: extractor(batch))}


def fields(loaded: model.LoadedModel, description: dict, folder: Path) -> dict[str, float]:
    """Seconds per unit and GFLOP per second: the line through layers of small and large fields."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)
    work, seconds = [], []
    layers = {layer["name"]: layer for layer in description["layers"]}
    for name, channels in (("maxpool", 32), ("layer1.1", 8), ("layer2.1", 4), ("layer4.1", 2)):
        layer, per_channel = layers[name], 8
        shape = (channels, per_channel)
        image = np.argsort(random.random((channels, 16)), axis=1)[:, :per_channel]
        top = {
            "value": np.zeros(shape, np.float32),
            "image": image.astype(np.int32),
            "yx": random.integers(0, layer["height"], (*shape, 2)).astype(np.int16),
        }
        exact = loaded.graph.prefix(name)(loaded.preprocess(pictures)).detach().numpy()
        rows = np.arange(channels)[:, None]
        top["value"] = exact[top["image"], rows, top["yx"][..., 0], top["yx"][..., 1]]

        def measure(name=name, channels=channels, top=top) -> None:
            task = Task(folder / f"{name}.h5", store.provenance("receptive_fields", {}))
            receptive_fields.measure(loaded, name, pictures, np.arange(channels), top, 4, 0, task)

        units = channels * per_channel
        seconds.append(best(measure) / units)
        work.append(estimates.gflop_per_unit(layer, 224))
    slope, offset = np.polyfit(work, seconds, 1, w=1 / np.array(seconds))
    return {"fields_look": max(offset, 1e-4), "fields_cpu": 1 / slope}


def ablation(loaded: model.LoadedModel, description: dict) -> dict[str, float]:
    """Seconds per pair of image and channel, and GFLOP per second behind the layer: the line
    through layers of long and short suffixes."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    gflops = {layer["name"]: layer["gflops"] for layer in description["layers"]}
    work, seconds = [], []
    for name, channels in (("layer1.1", 2), ("layer2.1", 4), ("layer3.1", 8)):
        ablator = ablate.Ablator(loaded, name)
        seen, sets = ablator.see(pictures), np.arange(channels)[:, None]

        def run(ablator=ablator, seen=seen, sets=sets) -> None:
            ablator.ablate(seen, sets, "zero", np.zeros(4, int))

        seconds.append(best(run) / (4 * channels))
        work.append(description["gflops"] - gflops[name])
    slope, offset = np.polyfit(work, seconds, 1, w=1 / np.array(seconds))
    return {"ablation_look": max(offset, 1e-5), "ablation_cpu": 1 / slope}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="replace resources/rates.csv")
    write = parser.parse_args().write
    found = start_up() | decoding() | drawing() | networks()
    with estimates.RATES.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        if line["rate"] in found:
            line |= {"value": f"{found[line['rate']]:.3g}", "source": SOURCE}
        print(f"{line['rate']:14} {line['value']:>10} {line['unit']:16} {line['source']}")
    if write:
        with estimates.RATES.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


if __name__ == "__main__":
    main()

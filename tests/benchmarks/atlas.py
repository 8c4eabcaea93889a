"""The atlas of 4,000 channels: how long it takes to build, how large it is, and how fast Chromium
opens it from disk.

The run is invented: 8 layers of 500 channels with receptive fields of 64 pixels, smooth noise for
patches and fields, 320 columns without gaps, and the curves of gratings. Loading is timed from the
start of navigation until the page is ready and its grid drawn, and until the scatter plot is, too;
the browser starts anew each time. Memory is that of the page: its JavaScript heap, and the private
memory of its process. The last line is one JSON object.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from atlas_site import sources, write_gratings  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from synthetic import Layer, Run, opponency, tuning  # noqa: E402

from rfatlas import atlas, store  # noqa: E402

LAYERS, CHANNELS, SIZE, PATCHES = 8, 500, 64, 9

DRAWN = "return Boolean(document.getElementById('scatter').data)"


def write(folder: Path) -> Run:
    """Write the files of the invented run."""
    random = np.random.default_rng(0)
    layers = [Layer(f"layer{i}", CHANNELS, 1, SIZE, 4, 0.5) for i in range(LAYERS)]
    run = Run(layers=layers, images=PATCHES, top_k=PATCHES)
    # Its own files of receptive fields, made by plain loops, would take minutes.
    run._receptive_field = lambda *_: None
    run.write(folder)
    for layer in layers:
        noise = random.normal(0, 1, (CHANNELS, PATCHES, SIZE, SIZE)).astype(np.float32)
        smooth = gaussian_filter(noise, (0, 0, 2, 2)) * 250
        tint = random.uniform(60, 200, (CHANNELS, PATCHES, 1, 1, 3))
        path = folder / "receptive_fields" / f"{layer.name}.h5"
        with store.create(path, store.provenance("receptive_fields", {})) as file:
            file["channel"] = np.arange(CHANNELS)
            file["patch"] = (tint + smooth[..., None]).clip(0, 255).astype(np.uint8)
            file["count"] = np.full((CHANNELS, SIZE, SIZE), PATCHES, np.int32)
            field = random.normal(0, 1, (CHANNELS, 3, SIZE, SIZE))
            field = gaussian_filter(field, (0, 0, 2, 2))
            for name in ("mean_image", "mean_gradient", "effective"):
                file[name] = np.abs(field) if name != "mean_gradient" else field
        write_gratings(folder / "gratings" / f"{layer.name}.h5", CHANNELS)
    sizes = {layer.name: CHANNELS for layer in layers}
    both = pd.concat([tuning(sizes), opponency(sizes)], axis=1)
    both = both.loc[:, ~both.columns.duplicated()].copy()
    both["preferred_class"] = [f"class {i % 1000}" for i in range(len(both))]
    more = random.normal(0, 1, (len(both), 320 - both.shape[1]))
    both = pd.concat([both, pd.DataFrame(more).add_prefix("measure_")], axis=1)
    store.write_table(both, folder / "channels.csv")
    return run


def opened(page: Path) -> dict[str, float]:
    """Open the page in a browser of its own; seconds and megabytes."""
    options = Options()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,900")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get("about:blank")
        driver.get(page.as_uri())
        WebDriverWait(driver, 60, poll_frequency=0.02).until(lambda d: d.execute_script(DRAWN))
        marks = driver.execute_script(
            "return Object.fromEntries(performance.getEntriesByType('mark')"
            ".map((mark) => [mark.name, mark.startTime]))"
        )
        time.sleep(1)
        heap = driver.execute_script("return performance.memory.usedJSHeapSize") / 1e6
        children = psutil.Process(driver.service.process.pid).children(recursive=True)
        page_processes = [c for c in children if "--type=renderer" in " ".join(c.cmdline())]
        memory = max(c.memory_full_info().uss for c in page_processes) / 1e6
        return {
            **{f"{name}_s": at / 1e3 for name, at in marks.items()},
            "heap_mb": heap,
            "process_mb": memory,
        }
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--site", type=Path, help="measure this index.html instead")
    arguments = parser.parse_args()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        page = arguments.site
        if page is None:
            folder = Path(place) / "demo"
            run = write(folder)
            began = time.perf_counter()
            stages = ("receptive_fields", "gratings")
            atlas.build(sources(run, folder, *stages), "top_per_image", folder / "atlas")
            result["build_s"] = time.perf_counter() - began
            page = folder / "atlas" / "index.html"
        files = [path for path in page.resolve().parent.rglob("*") if path.is_file()]
        result["disk_mb"] = sum(path.stat().st_size for path in files) / 1e6
        measured = [opened(page.resolve()) for _ in range(arguments.repeats)]
    for name in measured[0]:
        values = [one[name] for one in measured]
        print(f"{name}: {', '.join(f'{value:.3g}' for value in values)}")
        result[name] = float(np.median(values))
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()

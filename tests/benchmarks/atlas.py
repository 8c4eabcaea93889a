"""The atlas of thousands of channels: how long it takes to build, how large it is, and how fast
Chromium opens it from disk.

The run is invented: layers of `--channels` channels in all (4,000; 26,560 is a ResNet-50) with
receptive fields of `--size` pixels, smooth noise for patches and fields, 320 columns without gaps,
and the curves of gratings. The browser starts anew for each repeat. Times are from the start of
navigation: until the controls and the grid are there (`ready_s`), and until the scatter plot is
(`scatter_s`). Then a reader opens a passport, sorts all layers by a column, searches for a class,
and opens ten passports more. Memory is measured once the page is loaded and after all that:
`heap_mb` is the page's JavaScript heap, `private_mb` what its process has for itself alone,
`pss_mb` that and its part of what it shares with others, `rss_mb` all it has in memory, Chromium's
own code included. What should stay below 150 MB is `pss_mb`. The last line is one JSON object.
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
sys.path.insert(0, str(ROOT / "tests"))

from atlas_site import sources, write_gratings  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from synthetic import Layer, Run, opponency, tuning  # noqa: E402

from rfatlas.atlas import atlas  # noqa: E402
from rfatlas.files import store  # noqa: E402

PATCHES = 9

#: What is true once the page is ready and the scatter plot drawn.
DRAWN = (
    "return document.body.dataset.ready === 'true'"
    " && document.getElementById('scatter').dataset.drawn === 'true'"
)


def write(folder: Path, layers: int, channels: int, size: int) -> Run:
    """Write the files of the invented run: `layers` of `channels` each."""
    random = np.random.default_rng(0)
    layers = [Layer(f"layer{i}", channels, 1, size, 4, 0.5) for i in range(layers)]
    run = Run(layers=layers, images=PATCHES, top_k=PATCHES)
    # Its own files of receptive fields, made by plain loops, would take minutes.
    run._receptive_field = lambda *_: None
    run.write(folder)
    for layer in layers:
        noise = random.normal(0, 1, (channels, PATCHES, size, size)).astype(np.float32)
        smooth = gaussian_filter(noise, (0, 0, 2, 2)) * 250
        tint = random.uniform(60, 200, (channels, PATCHES, 1, 1, 3))
        path = folder / "receptive_fields" / f"{layer.name}.h5"
        with store.create(path, store.provenance("receptive_fields", {})) as file:
            file["channel"] = np.arange(channels)
            file["patch"] = (tint + smooth[..., None]).clip(0, 255).astype(np.uint8)
            file["count"] = np.full((channels, size, size), PATCHES, np.int32)
            field = random.normal(0, 1, (channels, 3, size, size))
            field = gaussian_filter(field, (0, 0, 2, 2))
            for name in ("mean_image", "mean_gradient", "effective"):
                file[name] = np.abs(field) if name != "mean_gradient" else field
        write_gratings(folder / "gratings" / f"{layer.name}.h5", channels)
    sizes = {layer.name: channels for layer in layers}
    both = pd.concat([tuning(sizes), opponency(sizes)], axis=1)
    both = both.loc[:, ~both.columns.duplicated()].copy()
    both["preferred_class"] = [f"class {i % 1000}" for i in range(len(both))]
    more = random.normal(0, 1, (len(both), 320 - both.shape[1]))
    both = pd.concat([both, pd.DataFrame(more).add_prefix("measure_")], axis=1)
    store.write_table(both, folder / "channels.csv")
    return run


def memory(driver: webdriver.Chrome) -> dict[str, float]:
    """What the page holds, in megabytes."""
    time.sleep(1)
    children = psutil.Process(driver.service.process.pid).children(recursive=True)
    pages = [c for c in children if "--type=renderer" in " ".join(c.cmdline())]
    used = max((page.memory_full_info() for page in pages), key=lambda info: info.uss)
    return {
        "heap_mb": driver.execute_cdp_cmd("Runtime.getHeapUsage", {})["usedSize"] / 1e6,
        "private_mb": used.uss / 1e6,
        "pss_mb": used.pss / 1e6,
        "rss_mb": used.rss / 1e6,
    }


def opened(page: Path) -> dict[str, float]:
    """Open the page in a browser of its own and use it; seconds and megabytes."""
    options = Options()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,900")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def timed(action: str, done: str) -> float:
        began = time.perf_counter()
        driver.execute_script(action)
        WebDriverWait(driver, 60, poll_frequency=0.01).until(lambda d: d.execute_script(done))
        return time.perf_counter() - began

    def passport(channel: str) -> float:
        return timed(
            f"location.hash = '#{channel}'",
            f"return document.getElementById('passport').dataset.shows === '{channel}'",
        )

    try:
        driver.get("about:blank")
        empty = memory(driver)
        began = time.perf_counter()
        driver.get(page.as_uri())
        WebDriverWait(driver, 60, poll_frequency=0.02).until(lambda d: d.execute_script(DRAWN))
        found = {"seen_s": time.perf_counter() - began}
        marks = driver.execute_script(
            "return Object.fromEntries(performance.getEntriesByType('mark')"
            ".map((mark) => [mark.name, mark.startTime]))"
        )
        found |= {f"{name}_s": at / 1e3 for name, at in marks.items()}
        found |= memory(driver)
        found |= {f"empty_{name}": empty[name] for name in ("private_mb", "pss_mb", "rss_mb")}
        layers, last = driver.execute_script(
            "const all = rfatlas.overview.layers;"
            "return [all.map((layer) => layer.name), all.at(-1).channels - 1]"
        )
        found["passport_s"] = passport(f"{layers[0]}/0")
        driver.execute_script("document.getElementById('passport').close()")
        numbers = "rfatlas.overview.columns.filter((c) => c.kind === 'number')"
        found["sort_s"] = timed(
            f"rfatlas.view.change({{sort: {numbers}.at(-1).name}}).then(() => window.sorted = 1)",
            "return window.sorted === 1",
        )
        found["search_s"] = timed(
            "rfatlas.view.change({search: 'class 12'}).then(() => window.searched = 1)",
            "return window.searched === 1",
        )
        driver.execute_script("rfatlas.view.change({search: ''})")
        for step in range(10):
            passport(f"{layers[step % len(layers)]}/{step * last // 10}")
        found |= {f"used_{name}": value for name, value in memory(driver).items()}
        return found
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--channels", type=int, default=4000, help="of all layers together")
    parser.add_argument("--size", type=int, default=64, help="side of the receptive fields")
    parser.add_argument("--keep", type=Path, help="make the site here, and leave it")
    parser.add_argument("--site", type=Path, help="measure this index.html instead")
    arguments = parser.parse_args()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        page = arguments.site
        if page is None:
            folder = (arguments.keep or Path(place)) / "demo"
            each = arguments.channels // arguments.layers
            run = write(folder, arguments.layers, each, arguments.size)
            began = time.perf_counter()
            stages = ("receptive_fields", "gratings")
            atlas.build(*sources(run, folder, *stages), folder / "atlas")
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

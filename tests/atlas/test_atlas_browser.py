"""Stage atlas in a real browser: what a reader of the pages does, against the table behind them.

The pages are opened from disk. Each test ends with a look at what the browser logged: no error, no
request to any network.
"""

import json
import shutil
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import h5py
import numpy as np
import pandas as pd
import pytest
from atlas_site import MARKUP, measured, sources, told, write_gratings, write_table
from synthetic import Layer, Run

from rfatlas.atlas import atlas
from rfatlas.files import store

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no Chromium here (Debian: apt-get install chromium chromium-driver)",
)

#: Why the site has nothing of some stages.
ABSENT = {stage: f"{stage} is off" for stage in ("color", "preferred_stimulus")}

#: The rows behind a finding.
LINES = [{"table": "orientation/selective.csv", "line": line} for line in (4, 10)]

SVG = "{http://www.w3.org/2000/svg}"

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--force-prefers-reduced-motion",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """An atlas with markup in a class name, a silent channel, gratings, Gabors and ablations."""
    run = Run()
    run.value["layer1.0"][:, 2] = 0
    run.class_names[1], run.class_names[3] = MARKUP, "zebra"
    # Its first image is of that class, so that the name stands below a patch of every channel.
    run.labels[:20] = 1
    folder = run.write(tmp_path_factory.mktemp("browser") / run.name)
    for layer in run.layers:
        write_gratings(folder / "gratings" / f"{layer.name}.h5", layer.channels)
    channels = sum(layer.channels for layer in run.layers)
    table = write_table(run, folder, measured(channels))
    for layer in run.layers:
        with store.create(folder / "ablation" / f"{layer.name}.h5", {"stage": "ablation"}) as file:
            file["channel"], file["label"] = np.arange(layer.channels), run.labels
            change = np.zeros((layer.channels, run.classes), np.float32)
            change[3, [1, 3]] = -0.5, 0.25
            file["zero/class_delta"] = change
    matched = {"run": ["twin", "gone"], "layer": "conv1", "channel": 3, "run_channel": [7, 8]}
    store.write_table(pd.DataFrame(matched | {"correlation": [0.75, 0.5]}), folder / "matched.csv")
    claims = [
        {"claim": "a", "question": "Why?", "sentence": MARKUP, "missing": None, "rows": LINES},
        {"claim": "b", "question": "Not?", "sentence": "", "missing": "it is off", "rows": []},
    ]
    (folder / "findings.json").write_text(json.dumps({"claims": claims}))
    names = "receptive_fields", "gratings", "ablation"
    more = {"matched": [folder / "matched.csv"], "findings": folder / "findings.json"}
    about = {"stages": told(ABSENT), "references": ["demo"], "runs": ["twin"]}
    given = sources(run, folder, *names, files=more, **about)
    atlas.build(*given, folder / "atlas")
    return run, folder / "atlas" / "index.html", table


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = Options()
    options.binary_location = BROWSER
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = tmp_path_factory.mktemp("downloads")
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior",
        {"behavior": "allow", "downloadPath": str(driver.downloads)},
    )
    yield driver
    driver.quit()


class Page:
    """The page, as a reader handles it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, path: Path, part: str = "") -> None:
        # Another address first, or only the part behind # would change.
        self.driver.get("about:blank")
        self.driver.get(path.as_uri() + part)
        self.until(lambda: self.run("return document.body.dataset.ready === 'true'"))

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str, *values):
        return self.driver.execute_script(script, *values)

    def until(self, condition, seconds: float = 10):
        """Wait for a condition that the browser fulfils in its own time, and return its value."""
        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: condition())

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def settle(self) -> None:
        """Wait until grid and plot show what was asked for."""
        self.until(lambda: self.run("return rfatlas.view.settled && rfatlas.scatter.settled"))

    def choose(self, selector: str, value: str) -> None:
        Select(self.one(selector)).select_by_value(value)
        self.settle()

    def search(self, text: str) -> None:
        self.one("#search").send_keys(text)
        self.settle()

    def shown(self) -> list[int]:
        """Rows of the table in the order of the grid."""
        return self.run("return [...rfatlas.view.rows]")

    def cells(self) -> list[int]:
        """Rows of the table that the grid has cells for, in reading order."""
        return self.run(
            "return [...document.querySelectorAll('#grid [data-row]')]"
            ".sort((a, b) => a.dataset.place - b.dataset.place).map((c) => Number(c.dataset.row))"
        )

    def marked(self) -> set[int]:
        """Rows whose cells are marked as selected."""
        cells = self.all("#grid [data-row][aria-selected=true]")
        return {int(cell.get_attribute("data-row")) for cell in cells}

    def plotted(self) -> set[int]:
        """Rows whose points are drawn as selected: opaque, beside faint ones."""
        self.run(
            "const draw = rfatlas.scatter.plot; window.drawn = [];"
            "const arc = CanvasRenderingContext2D.prototype.arc;"
            "CanvasRenderingContext2D.prototype.arc = function (...a) {"
            " window.drawn.push([this.globalAlpha, a[0], a[1]]); return arc.apply(this, a); };"
            "draw.redraw(false); return Promise.resolve().then(() => {"
            " CanvasRenderingContext2D.prototype.arc = arc; });"
        )
        return set(
            self.run(
                "const { points, plot } = rfatlas.scatter;"
                "const at = (i) => [plot.valToPos(points.x[i], 'x', true),"
                " plot.valToPos(points.y[i], 'y', true)].map((v) => v.toFixed(3)).join();"
                "const opaque = new Set(window.drawn.filter(([alpha]) => alpha === 1)"
                ".map(([, x, y]) => [x, y].map((v) => v.toFixed(3)).join()));"
                "return points.rows.filter((_, i) => opaque.has(at(i)))"
            )
        )

    def add_filter(self, column: str, operator: str | None, value: str) -> None:
        self.one("#add-filter").click()
        row = self.all("#filters .filter")[-1]
        Select(row.find_elements(By.TAG_NAME, "select")[0]).select_by_value(column)
        if operator:
            Select(row.find_elements(By.TAG_NAME, "select")[1]).select_by_visible_text(operator)
        field = row.find_elements(By.CSS_SELECTOR, "[aria-label=Value]")[0]
        if field.tag_name == "select":
            Select(field).select_by_visible_text(value)
        elif value:
            field.send_keys(value)
        self.settle()

    def close(self) -> None:
        """Leave the passport, and wait until the page has heard of it."""
        self.press(Keys.ESCAPE)
        self.until(lambda: self.run("return rfatlas.passport.current === null"))

    def downloaded(self, pattern: str) -> Path:
        def found() -> list[Path]:
            # Chromium makes an empty file of that name first.
            return [path for path in self.driver.downloads.glob(pattern) if path.stat().st_size]

        return self.until(found)[0]


@pytest.fixture
def page(site, browser):
    handled = Page(browser)
    handled.size(1280, 900)
    handled.open(site[1])
    yield handled
    assert handled.run("return window.broken") is None, "markup in a name was run"
    problems = [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]
    assert problems == []
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert any(url.endswith("/data/overview.js") for url in asked), "requests are logged"
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []


# ---- sort, filter, search


def test_all_channels_stand_in_network_order(page, site):
    _, _, table = site
    assert page.cells() == list(range(len(table)))
    assert page.text("#status") == f"{len(table)} of {len(table)} channels"
    names = [cell.text for cell in page.all("#grid .cell-name")]
    assert names[0].startswith("conv1/0")
    assert len(page.all("#grid [role=img][aria-label='mean gradient of conv1 channel 3']")) == 1


def test_a_class_without_a_name_is_told_by_its_number(page, site):
    _, _, table = site
    page.run(
        "const { value } = rfatlas; rfatlas.value = (name, row) =>"
        " name === 'preferred_class' ? null : value(name, row); rfatlas.grid.redraw()"
    )
    said = [cell.text for cell in page.all("#grid .cell-value")]
    known = table["preferred_label"].notna() & ~table["inactive"].astype(bool)
    label = table["preferred_label"].fillna(0).astype(int).astype(str)
    wanted = ("class " + label).where(known, "").tolist()
    assert said == wanted[: len(said)] and known[: len(said)].any()


def test_sorting_by_a_column(page, site):
    _, _, table = site
    page.choose("#sort", "osi")
    wanted = table["osi"].sort_values(ascending=False, kind="stable", na_position="last")
    assert page.cells() == wanted.index.tolist()
    page.one("#direction").click()
    wanted = table["osi"].sort_values(kind="stable", na_position="last")
    assert page.cells() == wanted.index.tolist()
    first = page.all("#grid .cell-value")[0].text
    assert float(first) == pytest.approx(table["osi"].min(), rel=1e-3)


def test_filters_combine(page, site):
    _, _, table = site
    page.add_filter("osi", "≥", "0.3")
    assert page.shown() == table.index[table["osi"] >= 0.3].tolist()
    page.add_filter("color_class", "is", "single_opponent")
    wanted = table.query("osi >= 0.3 and color_class == 'single_opponent'").index.tolist()
    assert page.shown() == wanted != []
    page.add_filter("inactive", "is", "no")
    wanted = table.query("osi >= 0.3 and color_class == 'single_opponent' and not inactive")
    assert page.shown() == page.cells() == wanted.index.tolist()
    assert page.text("#status") == f"{len(wanted)} of {len(table)} channels"
    page.all("#filters button")[1].click()
    assert page.shown() == table.query("osi >= 0.3 and not inactive").index.tolist()


def test_missing_values_can_be_asked_for(page, site):
    _, _, table = site
    page.add_filter("osi", "missing", "")
    assert page.shown() == table.index[table["osi"].isna()].tolist() == [1, 5]


def test_layers_and_search(page, site):
    _, _, table = site
    next(b for b in page.all("#layers button") if b.text.startswith("layer1.0")).click()
    assert page.shown() == table.index[table["layer"] == "layer1.0"].tolist()
    page.search("zebra")
    inside = (table["layer"] == "layer1.0") & (table["preferred_class"] == "zebra")
    assert page.shown() == table.index[inside].tolist()
    page.one("#search").send_keys(Keys.ESCAPE)
    page.all("#layers button")[0].click()
    page.search("conv1/1")
    wanted = table.index[(table["layer"] == "conv1") & (table["channel"] == 1)]
    assert page.shown() == wanted.tolist()
    page.search("xyz")
    assert page.shown() == []
    page.one("#reset").click()
    assert len(page.shown()) == len(table)


# ---- scatter plot and selection


def box(page: Page, share: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Drag a box in the scatter plot, given as shares of the plot's area from its top left; return
    the values (x0, x1, y0, y1) it encloses."""
    page.settle()
    area = page.run(
        "const box = rfatlas.scatter.plot.over.getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]"
    )
    left, top, width, height = area
    x0, x1 = (round(left + s * width) for s in share[:2])
    y0, y1 = (round(top + s * height) for s in share[2:])
    ends = page.run(
        "const { plot } = rfatlas.scatter;"
        "return [[arguments[0], arguments[1]].map((x) => plot.posToVal(x, 'x')),"
        " [arguments[2], arguments[3]].map((y) => plot.posToVal(y, 'y'))]",
        *(x0 - left, x1 - left, y0 - top, y1 - top),
    )
    mouse = ActionChains(page.driver, duration=50)
    mouse.w3c_actions.pointer_action.move_to_location(x0, y0)
    mouse.w3c_actions.pointer_action.pointer_down()
    mouse.w3c_actions.pointer_action.move_to_location((x0 + x1) // 2, (y0 + y1) // 2)
    mouse.w3c_actions.pointer_action.move_to_location(x1, y1)
    mouse.w3c_actions.pointer_action.pointer_up()
    mouse.perform()
    return (*sorted(ends[0]), *sorted(ends[1]))


def test_a_box_in_the_scatter_plot_selects_in_the_grid(page, site):
    _, _, table = site
    page.choose("#scatter-x", "filter_norm")
    page.choose("#scatter-y", "activation_var")
    x0, x1, y0, y1 = box(page, (0.05, 0.6, 0.02, 0.7))
    x, y = table["filter_norm"], table["activation_var"]
    wanted = set(table.index[x.between(x0, x1) & y.between(y0, y1)])
    assert 0 < len(wanted) < len(table)
    page.until(lambda: page.marked())
    assert page.marked() == page.plotted() == wanted
    assert page.text("#status").endswith(f", {len(wanted)} selected")
    page.one("#only-selected").click()
    assert set(page.shown()) == wanted
    page.one("#clear-selection").click()
    assert page.marked() == page.plotted() == set()
    assert len(page.shown()) == len(table)


def test_a_lasso_selects_what_lies_inside(page, site):
    _, _, table = site
    page.choose("#scatter-x", "filter_norm")
    page.choose("#scatter-y", "activation_var")
    page.one("[data-tool=lasso]").click()
    area = page.run("return rfatlas.scatter.plot.over.getBoundingClientRect().toJSON()")
    # A triangle: left below, left above, right below.
    share = np.array([[0.01, 0.99], [0.01, 0.01], [0.99, 0.99]])
    corners = share * [area["width"], area["height"]] + [area["left"], area["top"]]
    mouse = ActionChains(page.driver, duration=20)
    pointer = mouse.w3c_actions.pointer_action
    pointer.move_to_location(*corners[0].round().astype(int).tolist())
    pointer.pointer_down()
    for corner in corners[1:]:
        pointer.move_to_location(*corner.round().astype(int).tolist())
    pointer.pointer_up()
    mouse.perform()
    ends = page.run(
        "const { plot } = rfatlas.scatter;"
        "const { width, height } = plot.over.getBoundingClientRect();"
        "return [plot.posToVal(0, 'x'), plot.posToVal(width, 'x'),"
        " plot.posToVal(height, 'y'), plot.posToVal(0, 'y')]"
    )
    x = (table["filter_norm"] - ends[0]) / (ends[1] - ends[0])
    y = (table["activation_var"] - ends[2]) / (ends[3] - ends[2])
    # Points on the very edge may fall on either side.
    assert set(table.index[x + y < 0.95]) <= page.marked() <= set(table.index[x + y < 1.01])
    assert page.marked() == page.plotted() != set()


def test_the_plot_can_be_enlarged(page):
    page.choose("#scatter-x", "filter_norm")
    page.choose("#scatter-y", "activation_var")
    assert not page.one("#unzoom").is_displayed()
    page.one("[data-tool=zoom]").click()
    x0, x1, y0, y1 = box(page, (0.2, 0.6, 0.3, 0.8))
    page.settle()
    scales = "const { x, y } = rfatlas.scatter.plot.scales; return [x.min, x.max, y.min, y.max]"
    assert page.run(scales) == pytest.approx([x0, x1, y0, y1])
    assert page.marked() == set()
    page.one("#unzoom").click()
    page.settle()
    low, high, *_ = page.run(scales)
    assert low < x0 and high > x1


def test_a_point_under_the_pointer_shows_its_channel(page, site):
    _, _, table = site
    page.choose("#scatter-x", "filter_norm")
    page.choose("#scatter-y", "activation_var")
    row, x, y = page.run(
        "const { points, plot } = rfatlas.scatter; const box = plot.over.getBoundingClientRect();"
        "return [points.rows[5], box.left + plot.valToPos(points.x[5], 'x'),"
        " box.top + plot.valToPos(points.y[5], 'y')]"
    )
    mouse = ActionChains(page.driver, duration=20)
    mouse.w3c_actions.pointer_action.move_to_location(round(x), round(y))
    mouse.perform()
    shown = page.until(lambda: page.text("#hover"))
    assert shown.startswith(f"{table['layer'][row]}/{table['channel'][row]}\n")
    assert page.all("#hover .tile[aria-label^='mean gradient of ']")
    mouse.w3c_actions.pointer_action.click()
    mouse.perform()
    page.until(lambda: page.marked() == {row})


def test_channels_are_selected_without_a_keyboard(page):
    page.one("#selecting").click()
    for row in (2, 5, 9, 5):
        page.one(f"[data-row='{row}']").click()
    assert page.marked() == {2, 9}
    assert not page.one("#passport").is_displayed()
    page.search("conv1/")
    page.one("#select-shown").click()
    assert page.text("#status") == "12 of 26 channels, 12 selected"
    page.one("#selecting").click()
    page.one("[data-row='4']").click()
    page.until(lambda: page.one("#passport").is_displayed())
    page.one("#passport .choose").click()
    page.close()
    assert page.text("#status") == "12 of 26 channels, 11 selected"


def test_a_finger_selects_in_the_plot(page, site):
    _, _, table = site
    page.choose("#scatter-x", "filter_norm")
    page.choose("#scatter-y", "activation_var")
    area = page.run("return rfatlas.scatter.plot.over.getBoundingClientRect().toJSON()")
    touch = {"type": "touchStart", "touchPoints": [{"x": area["left"] + 2, "y": area["top"] + 2}]}
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
    for share in (0.5, 0.99):
        there = {"x": area["left"] + share * area["width"], "y": area["top"] + area["height"] - 2}
        move = {"type": "touchMove", "touchPoints": [there]}
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", move)
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.until(lambda: page.text("#status") == "26 of 26 channels, 26 selected")


# ---- the address


def test_the_address_keeps_what_is_shown(page, site):
    _, path, table = site
    page.choose("#sort", "osi")
    page.add_filter("color_class", "is not", "non_opponent")
    page.add_filter("osi", "≥", "0.2")
    page.choose("#thumbnail", "mean_image")
    page.choose("#scatter-x", "filter_norm")
    page.one("#scatter-y-log").click()
    page.search("class")
    kept = page.run("return location.hash")
    wanted = page.shown()
    assert 0 < len(wanted) < len(table)
    page.open(path, kept)
    page.settle()
    assert page.shown() == page.cells() == wanted
    assert page.run("return location.hash") == kept
    for selector, value in {
        "#sort": "osi",
        "#thumbnail": "mean_image",
        "#scatter-x": "filter_norm",
        "#search": "class",
    }.items():
        assert page.one(selector).get_attribute("value") == value
    assert page.one("#scatter-y-log").is_selected()
    assert len(page.all("#filters .filter")) == 2
    page.one("#grid [data-row]").click()
    page.until(lambda: page.one("#passport").is_displayed())
    first = table.loc[wanted[0]]
    address = page.run("return location.hash")
    assert address == f"#{first['layer']}/{first['channel']}?{kept.removeprefix('#?')}"
    page.driver.back()
    page.until(lambda: not page.one("#passport").is_displayed())
    assert page.run("return location.hash") == kept


def test_an_address_with_nonsense_is_ignored(page, site):
    _, path, table = site
    page.open(path, "#?sort=nothing&f=nothing+is+1&f=osi+squared+2&x=nothing&layer=nowhere&show=no")
    page.settle()
    assert page.shown() == list(range(len(table)))


# ---- findings, losses, matches


def test_findings_stand_in_the_atlas_with_their_rows(page):
    page.one("#show-findings").click()
    sentences = [one.text for one in page.all("#findings .sentence")]
    assert sentences == [MARKUP, "Not answered: it is off."]
    links = [one.get_attribute("href") for one in page.all("#findings-list p a")]
    assert [link.split("findings.html")[1] for link in links] == [
        "#orientation/selective.csv:4",
        "#orientation/selective.csv:10",
    ]


def test_the_overview_leads_to_its_channels(page, site):
    _, _, table = site
    page.one("#show-findings").click()
    assert len(page.all("#by-layer tbody tr")) == table["layer"].nunique()
    link = next(
        link
        for link in page.all("#by-layer tr:nth-child(1) td a")
        if "single_opponent" in link.get_attribute("href")
    )
    wanted = table.query("layer == 'conv1' and color_class == 'single_opponent'").index.tolist()
    assert link.text == f"{len(wanted)} of 12"
    link.click()
    page.until(lambda: page.text("#status") == f"{len(wanted)} of {len(table)} channels")
    assert page.shown() == page.cells() == wanted != []
    assert not page.one("#findings").is_displayed()
    assert page.one("#filters select").get_attribute("value") == "color_class"


def test_all_columns_are_explained_in_one_place(page, site):
    _, _, table = site
    page.one("#show-columns").click()
    names = [row.text for row in page.all("#glossary tbody th")]
    assert sorted(names) == sorted(table.columns)
    page.one("#glossary-search").send_keys("Morcos")
    shown = [row.text for row in page.all("#glossary tbody th") if row.is_displayed()]
    assert shown == ["class_selectivity"]


def test_classes_lost_and_matches_stand_in_the_passport(page, site):
    run, path, _ = site
    page.open(path, "#conv1/3")
    page.until(lambda: page.one("#passport").is_displayed())
    table = next(t for t in page.all("#passport .bars") if "without it" in t.text)
    lines = [row.text.replace("\n", " ") for row in table.find_elements(By.TAG_NAME, "tr")]
    count = [int((run.labels == label).sum()) for label in (1, 3)]
    assert lines == [
        f"{MARKUP} −50 points of {count[0]} images",
        f"zebra +25 points of {count[1]} images",
    ]
    card = next(c for c in page.all(".card") if c.text.startswith("Its match"))
    (link,) = card.find_elements(By.TAG_NAME, "a")
    assert link.get_attribute("href").endswith("/twin/atlas/index.html#conv1/7")
    assert "gone" in card.text and "correlation 0.5" in card.text
    assert "No class changes without it (zero)." not in page.text("#passport")


def test_what_is_selected_in_the_grid_is_marked_in_the_plot(page):
    page.settle()
    page.choose("#scatter-x", "filter_norm")
    page.choose("#scatter-y", "activation_var")
    page.one("[data-row='3']").send_keys(Keys.SPACE)
    cell = page.one("[data-row='8']")
    ActionChains(page.driver).key_down(Keys.CONTROL).click(cell).key_up(Keys.CONTROL).perform()
    assert page.marked() == page.plotted() == {3, 8}
    page.press(Keys.ESCAPE)
    assert page.marked() == page.plotted() == set()


def test_the_scatter_plot_shows_what_the_grid_shows(page, site):
    _, _, table = site
    page.settle()
    page.choose("#scatter-x", "osi")
    page.choose("#scatter-y", "filter_norm")
    page.add_filter("color_class", "is", "non_opponent")
    points = page.run(
        "const { rows, x, y } = rfatlas.scatter.points;"
        "return rows.map((row, i) => [row, x[i], y[i]])"
    )
    wanted = table[(table["color_class"] == "non_opponent") & table["osi"].notna()]
    assert sorted(row for row, _, _ in points) == wanted.index.tolist()
    for row, x, y in points:
        assert (x, y) == pytest.approx((table["osi"][row], table["filter_norm"][row]), rel=1e-8)
    page.choose("#scatter-colour", "color_class")
    assert page.all("#scatter-legend .key") == [], "one value needs no legend"


def test_many_classes_share_a_colour_beyond_the_frequent_ones(page, site):
    page.run(
        "const { reader } = rfatlas; const texts = [...'aaaaabbbbcccddeefghijklmno'];"
        "rfatlas.reader = (name) => name === 'preferred_class'"
        " ? { at: (row) => texts[row] } : reader(name); const { value } = rfatlas;"
        "rfatlas.value = (name, row) => name === 'preferred_class' ? texts[row] : value(name, row);"
    )
    page.choose("#scatter-y", "filter_norm")
    page.choose("#scatter-x", "activation_var")
    page.choose("#scatter-colour", "preferred_class")
    assert [key.text for key in page.all("#scatter-legend .key")] == [*"abcdef", "all other"]
    colours = page.run("return rfatlas.scatter.points.colours")
    assert len(set(colours[:16])) == 5 and len(set(colours[17:])) == 1


# ---- the keyboard


def test_the_grid_is_handled_by_keys(page):
    page.press("/")
    assert page.run("return document.activeElement.id") == "search"
    page.one("#search").send_keys(Keys.ENTER)
    row = "return Number(document.activeElement.dataset.row)"
    assert page.run(row) == 0
    columns = int(page.one("#grid").get_attribute("aria-colcount"))
    assert columns > 3
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.run(row) == 1
    page.press(Keys.ARROW_DOWN)
    assert page.run(row) == 1 + columns
    page.press(Keys.END)
    assert page.run(row) == 25
    page.press(Keys.ENTER)
    page.until(lambda: page.one("#passport").is_displayed())
    assert page.text("#passport-title") == "layer2.0/5"
    assert page.run("return location.hash") == "#layer2.0/5"
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: page.text("#passport-title") == "layer2.0/4")
    page.close()
    assert page.run(row) == 24
    assert page.run("return location.hash") == ""


# ---- the passport


def test_a_passport_shows_what_is_known(page, site):
    run, path, table = site
    page.open(path, "#conv1/3")
    page.until(lambda: page.one("#passport").is_displayed())
    row = table.iloc[3]
    page.run("document.querySelectorAll('#passport details').forEach((d) => { d.open = true; })")
    page.until(lambda: page.all("#passport details:not(:has(dl))") == [])
    shown = page.run(
        "return Object.fromEntries([...document.querySelectorAll('#passport .cards dt')]"
        ".map((t) => [t.textContent, t.nextElementSibling.textContent]))"
    )
    matched = {"twin", "gone"}
    assert set(shown) - matched == set(table.columns) - {"layer", "channel"}
    for name in ("osi", "filter_norm", "activation_var", "zero_delta_top1_lo"):
        value = shown[name].replace("−", "-").split()[0]
        assert float(value) == pytest.approx(row[name], rel=2e-3), name
    assert shown["orientation_deg"] == "45°"
    assert shown["inactive_reason"] == "–"
    _, image, _ = run.top(run.layers[0])
    shots = page.run(
        "return [...document.querySelector('#passport .shots').children]"
        ".map((f) => [f.title, f.querySelector('.clip').textContent])"
    )
    assert shots == [[f"{i}.png", run.class_names[run.labels[i]]] for i in image[3, :9]]
    assert MARKUP in [name for _, name in shots]
    charts = [chart.get_attribute("aria-label") for chart in page.all("#passport .chart svg")]
    assert charts[0] == "Orientation tuning of conv1/3"
    assert any(label.startswith("Spatial-frequency tuning") for label in charts)
    outline = page.one("#passport .outline")
    assert outline.get_attribute("aria-label").startswith("Gabor fit: ")
    pictures = page.all("#passport .tile")
    assert len(pictures) == 13, "nine patches, and four fields, one of them with its Gabor"
    assert all(picture.get_attribute("aria-label") for picture in pictures)


def test_what_is_not_known_says_why(page, site):
    _, path, _ = site
    page.open(path, "#conv1/3")
    page.until(lambda: page.one("#passport").is_displayed())
    gaps = [gap.get_attribute("aria-label") for gap in page.all("#passport .gap[role=img]")]
    assert gaps == [
        "No preferred stimulus: preferred_stimulus is off",
        "No least preferred stimulus: preferred_stimulus is off",
        "No L+M: color is off",
        "No L−M: color is off",
        "No S−(L+M): color is off",
    ]
    cards = {card.find_element(By.TAG_NAME, "h3").text: card for card in page.all(".card")}
    assert "Not computed: preferred_stimulus is off." in cards["Preferred stimuli"].text
    assert "Not computed: color is off." in cards["Colour"].text
    # The last channel answers to no grating, and the table has no column that says why.
    page.open(path, "#conv1/11")
    page.until(lambda: page.one("#passport").is_displayed())
    assert "Not computed: there is none of this channel." in page.text("#passport .wide-gap")


def test_a_channel_whose_fields_were_not_measured_shows_no_pictures(page, tmp_path):
    run, measured = Run(), 4
    folder = run.write(tmp_path / run.name)
    path = folder / "receptive_fields" / "conv1.h5"
    with h5py.File(path, "r+") as file:
        for name in [name for name in file if len(file[name]) == run.layers[0].channels]:
            values = file[name][:measured]
            del file[name]
            file[name] = values
    rows = pd.read_csv(path.with_suffix(".csv"))
    rows.loc[measured:, rows.columns.drop(["layer", "channel"])] = np.nan
    rows.to_csv(path.with_suffix(".csv"), index=False)
    write_table(run, folder)
    atlas.build(*sources(run, folder, "receptive_fields"), folder / "atlas")
    for channel, pictures in ((measured - 1, 9), (measured, 0)):
        page.open(folder / "atlas" / "index.html", f"#conv1/{channel}")
        page.until(lambda: page.one("#passport").is_displayed())
        top = page.one("#passport section")
        assert len(top.find_elements(By.CSS_SELECTOR, ".tile")) == pictures
        # What drives it is known all the same.
        assert len(top.find_elements(By.CSS_SELECTOR, ".clip")) == 9
        why = "Without pictures: it is not among the channels of receptive_fields.channels."
        assert (why in top.text) == (not pictures)


def test_the_first_numbers_are_those_that_mean_something(page, tmp_path):
    run = Run()
    folder = run.write(tmp_path / run.name)
    total = sum(layer.channels for layer in run.layers)
    more = pd.DataFrame(
        {
            "color_class": ["double_opponent", "single_opponent", "unresponsive"]
            + [""] * (total - 3),
            "hue_deg": 39.0,
            "color_direction_deg": 142.0,
        }
    )
    path = folder / "receptive_fields" / "conv1.csv"
    rows = pd.read_csv(path)
    rows.loc[:1, "erf_sigma"] = 2.5
    rows.loc[:1, "erf_r2"] = [0.49, 0.51]
    rows.to_csv(path, index=False)
    # That nothing reads the third channel makes it inactive.
    description = json.loads((folder / "model.json").read_text())
    description["layers"][0]["next_norm"][2] = 0.0
    (folder / "model.json").write_text(json.dumps(description))
    table = write_table(run, folder, more)
    assert table["inactive"].tolist()[:3] == [False, False, True]
    atlas.build(*sources(run, folder, "receptive_fields"), folder / "atlas")

    def glance(channel):
        page.open(folder / "atlas" / "index.html", f"#conv1/{channel}")
        page.until(lambda: page.one("#passport").is_displayed())
        return {
            cell.find_element(By.TAG_NAME, "dt").text: cell.find_element(By.TAG_NAME, "dd").text
            for cell in page.all("#passport .glance > div")
        }

    double, single, dead = glance(0), glance(1), glance(2)
    assert "of 7 px" in single["effective RF"]
    # Gratings tell the colour of a double-opponent channel, uniform fields that of others.
    assert "direction 142°" in double["colour"] and "hue 39°" in single["colour"]
    assert double["effective RF"] == "–" and single["effective RF"].startswith("2.5 px")
    assert dead["prefers"] == "–" and single["prefers"].startswith(table["preferred_class"][1])


def test_the_gabor_lies_where_the_columns_say(page, site):
    _, path, table = site
    page.open(path, "#conv1/2")
    page.until(lambda: page.one("#passport .outline").is_displayed())
    row, size = table.iloc[2], 7
    ends = page.run(
        "const line = document.querySelector('#passport .outline line');"
        "const box = line.ownerSVGElement.getBoundingClientRect(); const m = line.getScreenCTM();"
        "return ['1', '2'].map((i) => new DOMPoint(line.getAttribute('x' + i),"
        " line.getAttribute('y' + i)).matrixTransform(m))"
        ".map((p) => [(p.x - box.left) / box.width, (p.y - box.top) / box.height])"
    )
    # Bars stand at right angles to the direction of modulation; y runs up in the columns.
    bars = np.radians(row["gabor_theta_deg"] + 90)
    middle = np.array([size / 2 + row["gabor_x"], size / 2 - row["gabor_y"]])
    reach = row["gabor_sigma_y"] * np.array([np.cos(bars), -np.sin(bars)])
    wanted = np.array([middle - reach, middle + reach]) / size
    found = np.array(ends)
    if np.abs(found - wanted).max() > 0.01:
        found = found[::-1]
    np.testing.assert_allclose(found, wanted, atol=0.01)


def test_numbers_explain_themselves(page, site):
    _, path, _ = site
    page.open(path, "#conv1/3")
    page.until(lambda: page.one("#passport").is_displayed())
    term = page.one("#passport [data-explain=circular_variance], #passport [data-explain=osi]")
    page.run("arguments[0].focus()", term)
    shown = page.until(lambda: page.text("#tooltip"))
    assert "orientation selectivity at the preferred frequency" in shown
    assert "(R_pref − R_orth) / (R_pref + R_orth)" in shown
    assert term.get_attribute("aria-describedby") == "tooltip"
    term = page.one("#passport [data-explain=class_selectivity]")
    page.run("arguments[0].scrollIntoView({block: 'center'})", term)
    ActionChains(page.driver).move_to_element(term).perform()
    page.until(lambda: "Morcos et al. 2018" in page.text("#tooltip"))


def test_the_address_of_a_channel_holds_whatever_its_layer_is_called(page, tmp_path):
    name = "heads.3?x#4%20 é&<i>"
    run = Run(layers=[Layer("output", 4, 8, 19, 4, 0.5), Layer(name, 4, 8, 19, 4, 0.5)])
    folder = run.write(tmp_path / run.name)
    write_table(run, folder)
    atlas.build(*sources(run, folder, "receptive_fields"), folder / "atlas")
    page.open(folder / "atlas" / "index.html")
    page.run("rfatlas.address.visit(arguments[0])", f"{name}/2")
    page.until(lambda: page.one("#passport").is_displayed())
    address = page.run("return location.hash")
    page.open(folder / "atlas" / "index.html", address)
    page.until(lambda: page.one("#passport").is_displayed())
    assert page.text("#passport h2") == f"{name}/2"
    assert page.run("return rfatlas.address.channel") == f"{name}/2"


def test_an_address_without_such_a_channel_opens_the_grid(page, site):
    _, path, table = site
    for part in ("#conv1/99", "#nowhere/1", "#conv1", "#%"):
        page.open(path, part)
        assert not page.one("#passport").is_displayed()
        assert page.text("#status") == f"{len(table)} of {len(table)} channels"
    page.run("location.hash = '#maxpool/0'")
    page.run("location.hash = '#conv1/1'")
    page.until(lambda: page.one("#passport").is_displayed())
    page.driver.back()
    page.until(lambda: not page.one("#passport").is_displayed())


def test_a_silent_channel_has_a_passport_too(page, site):
    _, path, _ = site
    page.open(path, "#layer1.0/2")
    page.until(lambda: page.one("#passport").is_displayed())
    assert "No image drives this channel." in page.text("#passport")
    assert "inactive" in page.text("#passport .chips")


def test_markup_is_shown_and_not_run(page, site):
    run, path, table = site
    page.choose("#sort", "preferred_class")
    page.add_filter("preferred_class", "is", MARKUP)
    assert page.shown() == table.index[table["preferred_class"] == MARKUP].tolist() != []
    titles = [cell.get_attribute("title") for cell in page.all("#grid [data-row]")]
    assert all(title.endswith(f": {MARKUP}") for title in titles)
    page.choose("#scatter-colour", "preferred_class")
    page.settle()
    page.open(path, f"#{quote('conv1/3')}")
    page.until(lambda: page.one("#passport").is_displayed())
    assert MARKUP in page.run("return document.getElementById('passport').textContent")
    assert page.all("img") == []


# ---- downloads


def test_the_table_can_be_saved(page, site):
    _, _, table = site
    page.choose("#sort", "osi")
    page.add_filter("color_class", "is", "non_opponent")
    page.one("#download-table").click()
    saved = pd.read_csv(
        page.downloaded("demo_channels*.csv"),
        keep_default_na=False,
        na_values=[""],
        dtype={"layer": str},
    )
    wanted = table[table["color_class"] == "non_opponent"]
    wanted = wanted.sort_values("osi", ascending=False, kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(saved, wanted, check_dtype=False, rtol=1e-8)


def test_figures_can_be_saved(page, site):
    _, path, _ = site
    page.settle()
    page.one("#download-scatter").click()
    saved = ElementTree.parse(page.downloaded("demo_*_*.svg")).getroot()
    assert saved.tag == f"{SVG}svg"
    # The legend, in one line above the plot, has circles, too.
    points = [one for one in saved.iter(f"{SVG}circle") if one.find(f"{SVG}title") is not None]
    assert len(points) == 24, "two channels have no osi"
    page.choose("#scatter-y", "filter_norm")
    page.choose("#scatter-colour", "preferred_class")
    page.one("#download-scatter").click()
    saved = ElementTree.parse(page.downloaded("demo_filter_norm_*.svg")).getroot()
    assert MARKUP in [text.text for text in saved.iter(f"{SVG}text")]
    page.choose("#scatter-y", "activation_max")
    page.choose("#scatter-colour", "filter_norm")
    page.one("#download-scatter").click()
    saved = ElementTree.parse(page.downloaded("demo_activation_max_*.svg")).getroot()
    colours = {one.get("fill") for one in saved.iter(f"{SVG}circle")}
    assert len(colours) > 20, "each channel has a norm of its own, few of them nearly alike"
    page.open(path, "#conv1/3")
    page.until(lambda: page.all("#passport .chart"))
    button = page.one("#passport .chart button")
    page.run("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    curve = ElementTree.parse(page.downloaded("demo_conv1_3_orientation*.svg")).getroot()
    texts = "".join(text.text for text in curve.iter(f"{SVG}text"))
    assert "orientation of modulation (°)" in texts


# ---- narrow and dark


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_page_does_not_run_over_its_edge(page, site, dark):
    _, path, _ = site
    page.size(400, 800, dark)
    page.open(path)
    page.add_filter("osi", "≥", "0.1")
    width = "return document.scrollingElement.scrollWidth"
    assert page.run(width) <= 400
    assert int(page.one("#grid").get_attribute("aria-colcount")) >= 4
    page.open(path, "#layer2.0/1")
    page.until(lambda: page.one("#passport").is_displayed())
    assert page.run("return document.getElementById('passport').scrollWidth") <= 400
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(c) for c in ground[4:-1].split(",")) < 200) == dark


def test_the_theme_can_be_switched(page):
    root = "return document.documentElement.dataset.theme"
    assert page.run(root) == "light"
    page.one("#theme").click()
    assert page.run(root) == "dark"
    page.one("#theme").click()
    assert page.run(root) == "light"
    page.run("localStorage.clear()")


# ---- size


def test_thousands_of_channels_make_few_elements(page, tmp_path):
    layers = [Layer(f"layer{i}", 500, 1, 7, 2, 0.5) for i in range(8)]
    run = Run(layers=layers, images=2, top_k=1)
    # Its receptive fields, which are not shown here, would take as long as all the rest.
    run._receptive_field = lambda *_: None
    folder = run.write(tmp_path / "large")
    keys = [(layer.name, depth, row) for depth, layer in enumerate(layers) for row in range(500)]
    table = pd.DataFrame(keys, columns=["layer", "depth", "channel"])
    store.write_table(table.assign(osi=np.linspace(0, 1, 4000)), folder / "channels.csv")
    atlas.build(*sources(run, folder), folder / "atlas")
    page.open(folder / "atlas" / "index.html")
    assert page.text("#status") == "4000 of 4000 channels"
    assert len(page.cells()) < 200
    page.one("[data-row='0']").click()
    page.until(lambda: page.one("#passport").is_displayed())
    page.close()
    page.press(Keys.END)
    assert page.run("return document.activeElement.getAttribute('aria-label')") == (
        "layer7 channel 499"
    )
    assert len(page.cells()) < 200

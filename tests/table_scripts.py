"""Stages that write tables, run through their scripts, as their rules have them run."""

import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from rfatlas.files import store

ROOT = Path(__file__).resolve().parents[1]


def by_script(stage: str, folder: Path, names: Iterable[str], given: Mapping, **params) -> None:
    """Have the script of a stage write folder/<name>.csv from the files that it is given."""
    fake = SimpleNamespace(
        input=SimpleNamespace(**given),
        output=SimpleNamespace(**{name: str(folder / f"{name}.csv") for name in names}),
        params=SimpleNamespace(**params),
        log=[str(folder / "log.txt")],
        rule=f"{stage}_tables",
        threads=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path(str(ROOT / "scripts" / f"{stage}.py"), {"snakemake": fake})


def come_back(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Check that tables are read with the columns and rows that were written."""
    for name, rows in tables.items():
        store.write_table(rows, folder / f"{name}.csv")
        back = store.read_table(folder / f"{name}.csv")
        assert list(back.columns) == list(rows.columns) and len(back) == len(rows)

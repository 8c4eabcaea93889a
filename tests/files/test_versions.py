"""Versions of stages and of dependencies: recorded digests, requirements against environment."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from rfatlas import __version__, stages
from rfatlas.files import versions

ROOT = Path(__file__).resolve().parents[2]

# Names that differ between PyPI and conda, and between an import and PyPI.
CONDA = {"PyYAML": "pyyaml", "Pygments": "pygments"}
PYPI = {"PIL": "pillow", "yaml": "PyYAML"}


def unrecorded() -> list[str]:
    """Expensive stages whose version or digest is not that of the last `record`."""
    old = json.loads(versions.RECORD.read_text(encoding="utf-8"))
    return [name for name, now in versions.current().items() if old.get(name) != now]


def requirements(name: str = "requirements.txt") -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith(("#", "-r "))]
    assert len(pins) == len(set(pins)), "each library is named once"
    pinned = re.compile(r"[\w.-]+(\[\w+\])?==[\w.]+")
    assert all(map(pinned.fullmatch, pins)), "every version is pinned"
    return dict(pin.split("==") for pin in pins)


def test_the_environment_names_the_versions_of_the_requirements():
    content = yaml.safe_load((ROOT / "environment.yaml").read_text())
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    found = dict(entry.split("=") for entry in conda if "=" in entry)
    assert found.pop("python") == "3.11"
    found |= dict(entry.split("==") for entry in pip)
    assert found == {CONDA.get(name, name): pin for name, pin in requirements().items()}


def test_tools_of_development_are_pinned_apart():
    tools = requirements("requirements-dev.txt")
    assert {"pytest", "ruff", "captum"} <= set(tools)
    assert not set(tools) & set(requirements())


def test_torch_is_asked_for_without_a_local_version():
    assert requirements()["torch"] == "2.13.0"


def test_every_library_that_the_code_imports_is_required():
    own = {"rfatlas", "__future__", *sys.stdlib_module_names}
    imported = set()
    for file in (ROOT / "scripts").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    assert "torch" in imported
    assert {PYPI.get(name, name) for name in imported - own} <= set(requirements())


def test_no_expensive_stage_changed_without_its_version_or_record():
    assert unrecorded() == [], (
        "library modules changed. Do the results change? Raise the version in "
        "scripts/rfatlas/stages.py. Then, in any case: "
        "python -m rfatlas.files.versions record"
    )


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library whose stage `slow` imports `fast` in a function, and names an error."""
    (tmp_path / "slow.py").write_text("from rfatlas import slow\n")
    (tmp_path / "rfatlas").mkdir()
    (tmp_path / "rfatlas" / "errors.py").write_text("")
    (tmp_path / "rfatlas" / "fast.py").write_text("a = 1\n")
    (tmp_path / "rfatlas" / "slow.py").write_text(
        "from rfatlas.errors import b\n\ndef f():\n    from rfatlas import fast\n"
    )
    monkeypatch.setattr(versions, "LIBRARY", tmp_path / "rfatlas")
    monkeypatch.setattr(versions, "RECORD", tmp_path / "record.json")
    register(monkeypatch, 1)
    forget()
    yield tmp_path / "rfatlas"
    forget()


def register(monkeypatch, version):
    stage = stages.Stage("slow", "", "", "run", version=version)
    monkeypatch.setattr(stages, "STAGES", (stage,))


def forget():
    versions._imports.cache_clear()
    versions.modules.cache_clear()
    versions.digest.cache_clear()


def edit(library, content, name="fast.py"):
    (library / name).write_bytes(content)
    forget()


def test_a_digest_follows_the_content_of_all_that_is_imported(library):
    before = versions.digest("slow")
    edit(library, b"a = 2\n")
    assert versions.digest("slow") != before
    edit(library, b"a = 1\r\n")
    assert versions.digest("slow") == before


def test_a_digest_does_not_follow_what_defines_no_number(library):
    before = versions.digest("slow")
    edit(library, b"c = 1\n", "errors.py")
    (library / "new.py").write_text("d = 1\n")
    assert versions.digest("slow") == before


def test_a_digest_tells_which_module_holds_the_text(library):
    text = (library / "slow.py").read_bytes()
    (library / "fast.py").write_bytes(text.replace(b"fast", b"slow"))
    edit(library, b"from rfatlas import fast\n", "slow.py")
    one = versions.digest("slow")
    edit(library, b"from rfatlas import fast\n")
    (library / "slow.py").write_bytes(text.replace(b"fast", b"slow"))
    assert versions.digest("slow") != one


def test_an_edit_is_noticed_until_it_is_recorded_and_a_new_version_too(library, monkeypatch):
    versions.record()
    assert unrecorded() == []
    edit(library, b"a = 2\n")
    assert unrecorded() == ["slow"]
    versions.record()
    assert unrecorded() == []
    register(monkeypatch, 2)
    assert unrecorded() == ["slow"]


def test_the_modules_of_a_stage_are_all_that_its_job_runs():
    wing = {name.rpartition(".")[2] for name in versions.modules("receptive_fields")}
    assert {"receptive_fields", "crops", "statistics", "model", "graph"} <= wing
    assert not wing & {"store", "jobs", "config", "gabor_fit", "channels"}


def test_the_release_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()

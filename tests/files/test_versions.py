"""Versions of stages and of dependencies: recorded digests, requirements against environment."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from rfatlas import __version__
from rfatlas.files import versions

ROOT = Path(__file__).resolve().parents[2]

# Names that differ between PyPI and conda, and between an import and PyPI.
CONDA = {"PyYAML": "pyyaml", "Pygments": "pygments"}
PYPI = {"colour": "colour-science", "PIL": "pillow", "yaml": "PyYAML"}


def requirements() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "every version is pinned"
    return dict(pin.split("==") for pin in pins)


def test_the_environment_names_the_versions_of_the_requirements():
    content = yaml.safe_load((ROOT / "environment.yaml").read_text())
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    found = dict(entry.split("=") for entry in conda if "=" in entry)
    assert found.pop("python") == "3.11"
    found |= dict(entry.split("==") for entry in pip)
    assert found == {CONDA.get(name, name): pin for name, pin in requirements().items()}


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
    assert versions.unrecorded() == [], (
        "library modules changed. Do the results change? Raise STAGE_VERSIONS in "
        "scripts/rfatlas/files/versions.py. Then, in any case: "
        "python -m rfatlas.files.versions record"
    )


@pytest.fixture
def library(tmp_path, monkeypatch):
    (tmp_path / "fast.py").write_text("a = 1\n")
    (tmp_path / "slow.py").write_text("b = 2\n")
    monkeypatch.setattr(versions, "LIBRARY", tmp_path)
    monkeypatch.setattr(versions, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(versions, "MODULES", {"slow": ("slow", "fast")})
    monkeypatch.setattr(versions, "STAGE_VERSIONS", {"slow": 1})
    versions.digest.cache_clear()
    yield tmp_path
    versions.digest.cache_clear()


def edit(library, content):
    (library / "fast.py").write_bytes(content)
    versions.digest.cache_clear()


def test_a_digest_follows_the_content_and_nothing_else(library):
    before = versions.digest("slow")
    edit(library, b"a = 2\n")
    assert versions.digest("slow") != before
    edit(library, b"a = 1\r\n")
    assert versions.digest("slow") == before


def test_a_digest_tells_which_module_holds_the_text(library):
    (library / "fast.py").write_text("b = 2\n")
    (library / "slow.py").write_text("a = 1\n")
    exchanged = versions.digest("slow")
    edit(library, b"a = 1\n")
    (library / "slow.py").write_text("b = 2\n")
    versions.digest.cache_clear()
    assert versions.digest("slow") != exchanged


def test_an_edit_is_noticed_until_it_is_recorded_and_a_new_version_too(library, monkeypatch):
    versions.record()
    assert versions.unrecorded() == []
    edit(library, b"a = 2\n")
    assert versions.unrecorded() == ["slow"]
    versions.record()
    assert versions.unrecorded() == []
    monkeypatch.setattr(versions, "STAGE_VERSIONS", {"slow": 2})
    assert versions.unrecorded() == ["slow"]


def test_every_stage_with_modules_can_be_digested():
    for name in {*versions.MODULES, *versions.STAGE_VERSIONS}:
        assert re.fullmatch(r"[0-9a-f]{16}", versions.digest(name))


def test_the_release_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()

"""The plan of the house: size of packages, direction of imports, one register of stages."""

import ast
from pathlib import Path

import pytest

from rfatlas import stages

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "scripts" / "rfatlas"

#: A module imports from its own row and from rows above it only.
ROWS = [
    {"errors", "statistics", "stages"},
    {"files", "sources"},
    {"images", "demo_net"},
    {"plan", "network"},
    {"fields", "models"},
    {"physiology"},
    {"stimuli", "ablation"},
    {"tables", "figures"},
    {"atlas"},
    {"notebook"},
]
LEVEL = {room: level for level, rooms in enumerate(ROWS) for room in rooms}
WINGS = sorted(path.parent for path in LIBRARY.glob("*/__init__.py"))


def imports(path: Path) -> set[str]:
    """Wings, or modules at the top, that a file imports anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("rfatlas.")}
    return found - {"__version__"}


def room(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


MODULES = [path for path in sorted(LIBRARY.rglob("*.py")) if path != LIBRARY / "__init__.py"]


def test_every_room_has_a_place():
    assert {room(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_go_one_way(path):
    own = room(path)
    up = {other for other in imports(path) - {own} if LEVEL[other] >= LEVEL[own]}
    assert not up, f"{own} must not import {sorted(up)}"


def test_no_wing_is_too_large():
    assert len(list(LIBRARY.glob("*.py"))) <= 8
    for wing in WINGS:
        assert len(list(wing.glob("*.py"))) <= 12, wing.name


@pytest.mark.parametrize("wing", WINGS, ids=lambda wing: wing.name)
def test_a_wing_says_in_three_lines_what_it_is(wing):
    text = ast.get_docstring(ast.parse((wing / "__init__.py").read_text(encoding="utf-8")))
    assert 2 <= len([line for line in text.splitlines() if line]) <= 3


def test_a_stage_has_a_rule_file_a_script_and_a_module_of_its_name():
    modules = {path.stem for path in MODULES}
    for stage in stages.STAGES:
        if not stage.part_of:
            assert stage.name in modules
            assert (ROOT / "scripts" / f"{stage.name}.py").is_file()
            assert (ROOT / "workflow" / "rules" / f"{stage.name}.smk").is_file()


def test_stages_are_in_the_order_of_the_work():
    known = set()
    for stage in stages.STAGES:
        before = {*stage.reads, *stage.follows} | ({stage.part_of} if stage.part_of else set())
        assert before <= known, stage.name
        known.add(stage.name)


def test_the_readme_lists_the_stages_as_the_register_has_them():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = "\n".join(f"| `{stage.name}` | {stage.meaning} |" for stage in stages.STAGES)
    assert table in text, f"write this table into README.md:\n{table}"

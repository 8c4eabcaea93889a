"""Which code made a result: what Snakemake compares to decide whether a stage runs again.

Snakemake does not look into imported modules, so each rule carries one of two things in `params:`

* a cheap stage (channels, figures, ...) the digest of its library modules: any edit reruns it;
* an expensive stage (images, activations, ...) an integer version (`rfatlas.stages`), raised by
  hand when the numbers it writes change. `stage_digests.json` records the digest that each version
  had; the tests fail when the modules changed and neither the version nor the record did.

The modules of a stage are all that its script imports from the library, directly or not, less
`files`, `plan`, `errors` and `stages`: how a file is written or a message worded does not change a
number. What lies in the folder `page` of a package (the page of the atlas) counts with its modules.

Nothing here imports torch: the Snakefile reads this module while it builds the graph of jobs.

After an edit that leaves the results as they are: `python -m rfatlas.files.versions record`.
After one that changes them: raise the number in rfatlas/stages.py, then record.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from rfatlas import stages

LIBRARY = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("stage_digests.json")

# Modules that define no number, by the start of their names.
_OUTSIDE = ("rfatlas.errors", "rfatlas.stages", "rfatlas.files.", "rfatlas.plan.")


def stage(name: str) -> int:
    """Version of the expensive stage `name`, for `params: version=...`; cheap ones carry `digest`
    instead."""
    return stages.BY_NAME[name].version


@cache
def modules(name: str) -> tuple[str, ...]:
    """Dotted names, sorted, of the library modules behind the script of stage (or rule) `name`; a
    dotted name is a module itself. Raises FileNotFoundError if there is no script of that name.
    """
    found: set[str] = set()
    waiting = [name] if "." in name else _imports(LIBRARY.parent / f"{name}.py")
    while waiting:
        module = waiting.pop()
        if module not in found and not module.startswith(_OUTSIDE):
            found.add(module)
            waiting += _imports(_file(module))
    return tuple(sorted(found))


def _file(module: str) -> Path:
    return LIBRARY.joinpath(*module.split(".")[1:]).with_suffix(".py")


@cache
def _imports(path: Path) -> list[str]:
    """Modules of the library (packages left out) that a file imports, anywhere in its text."""
    found = []
    for node in _statements(ast.parse(path.read_bytes()).body):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.startswith("rfatlas.") and _file(name).is_file()]


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements, and those in them; expressions, which hold no imports, are ten times as many."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, part, ()))


@cache
def digest(name: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the library modules behind stage `name`, and of
    the pages in their packages.

    The content counts, not the time of the files: touching a file changes nothing, and taking
    an edit back restores the digest. Line ends are read as \\n on every system.
    """
    total = hashlib.sha256()
    files = {module: _file(module) for module in modules(name)}
    for folder in {file.parent / "page" for file in files.values()}:
        pages = (file for file in folder.rglob("*") if file.is_file())
        files |= {file.relative_to(LIBRARY).as_posix(): file for file in pages}
    for key, file in sorted(files.items()):
        text = file.read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{key} {len(text)}\n".encode())
        total.update(text)
    return total.hexdigest()[:16]


def current() -> dict[str, dict]:
    """Version and digest of each expensive stage, of the present code."""
    return {
        stage.name: {"version": stage.version, "digest": digest(stage.name)}
        for stage in stages.STAGES
        if stage.version is not None
    }


def record() -> None:
    """Write the present versions and digests to `stage_digests.json`."""
    RECORD.write_text(json.dumps(current(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["record"]:
        sys.exit("usage: python -m rfatlas.files.versions record")
    record()

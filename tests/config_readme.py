"""The end of config/README.md, from the schema and the register of stages.

`PYTHONPATH=scripts python tests/config_readme.py` prints it.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rfatlas import stages
from rfatlas.plan import schema


def keys(node: Mapping[str, Any] | None = None, path: tuple[str, ...] = ()) -> Iterator[tuple]:
    """(dotted key, its schema) of every key; names that the user chooses are written `<name>`."""
    node = schema.schema() if node is None else node
    for name, child in node.get("properties", {}).items():
        yield ".".join((*path, name)), child
        yield from keys(child, (*path, name))
    children = node.get("additionalProperties")
    if isinstance(children, dict):
        yield from keys(children, (*path, "<name>"))


def document() -> str:
    """The end of `config/README.md`: who reads whom, and a table of the keys of each section."""
    readers: dict[str, list[str]] = {}
    for stage in stages.BY_NAME:
        if found := ", ".join(stages.readers(stage)):
            readers.setdefault(found, []).append(stage)
    lines = ["| stage | is read by |", "|---|---|"]
    lines += [f"| {', '.join(names)} | {found} |" for found, names in readers.items()]
    sections: dict[str, list[str]] = {}
    for key, node in keys():
        section = key.split(".")[0] if "properties" in node or "." in key else "general"
        if "." not in key and node.get("additionalProperties") not in (None, False):
            section = key
        unit = f" Unit: {node['x-unit']}." if "x-unit" in node else ""
        if "x-when" not in node:
            continue
        cells = (
            f"`{key}`",
            f"{node['description'].strip()}{unit}",
            f"`{json.dumps(node['default'])}`",
            node["x-when"],
            node["x-reruns"],
        )
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        sections.setdefault(section, []).append(f"| {row} |")
    head = "| key | meaning | default | change it when | reruns |\n|---|---|---|---|---|"
    order = ["general", *(key for key in schema.schema()["properties"] if key in sections)]
    tables = ["\n".join([f"## {name}", "", head, *sections[name]]) for name in order]
    return "\n\n".join(["\n".join(lines), *tables])


if __name__ == "__main__":
    print(document())

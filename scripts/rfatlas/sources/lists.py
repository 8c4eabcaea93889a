"""Sources `list` and `scenes`: lines `path label`, or a CSV table.

The path may hold spaces; # starts a comment line. A table has the columns `file` or `path`, `label`
and optionally `class_name`. Label -1 = unknown. Paths are relative to the list file.
"""

import os
import re
from collections.abc import Sequence

import numpy as np

from rfatlas.sources.listing import Listing
from rfatlas.sources.source import Source, csv_row

_LABEL = re.compile(r"-1|[0-9]{1,6}")


class List(Source):
    """A list file, whose paths are relative to it."""

    inputs = {"path": "path", "class_names": "class_names"}

    def listing(self) -> Listing:
        """List the images; RfatlasError, naming key, value and what would be right."""
        content = [
            (number, line)
            for number, line in enumerate(self.lines("path"), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not content:
            raise self.wrong("lists no image; lines must be `path label`")
        header = [column.strip().lower() for column in content[0][1].split(",")]
        if header[0] in ("file", "path") or ("label" in header and len(header) > 1):
            rows = self._table(content, header)
        else:
            rows = [(number, *self._plain_row(number, line)) for number, line in content]
        if not rows:
            raise self.wrong("lists no image below its header")

        names, labels, words = [], [], {}
        first: dict[str, int] = {}
        for number, name, label, word in rows:
            if not _LABEL.fullmatch(label):
                raise self.wrong(
                    f"line {number}: label {label!r} of {name}; give an integer from 0 to 999999, "
                    "or -1 for unknown"
                )
            value = int(label)
            normal = os.path.normpath(name)
            if normal in first:
                raise self.wrong(f"line {number}: {name} is listed already in line {first[normal]}")
            first[normal] = number
            if word and words.setdefault(value, word) != word:
                raise self.wrong(
                    f"line {number}: label {value} is called {word!r} here and {words[value]!r} "
                    "above"
                )
            names.append(name)
            labels.append(value)
        self._check_exist(names)
        array = np.array(labels, dtype=np.int64)
        known = any(label >= 0 for label in words)
        class_names = (
            [words.get(label, str(label)) for label in range(int(array.max()) + 1)] if known else []
        )
        return Listing(self.name, self.path.parent, names, array, class_names)

    def _plain_row(self, number: int, line: str) -> tuple[str, str, str]:
        parts = line.strip().rsplit(None, 1)
        if len(parts) != 2:
            raise self.wrong(
                f"line {number}: {line.strip()[:60]!r} has no label; write `path label`, label -1 "
                "for unknown"
            )
        return parts[0], parts[1], ""

    def _table(
        self, content: Sequence[tuple[int, str]], header: Sequence[str]
    ) -> list[tuple[int, str, str, str]]:
        file = next((column for column in ("file", "path") if column in header), None)
        if file is None or "label" not in header:
            raise self.wrong(
                f"the header is {','.join(header)!r}; it needs the columns file (or path) and label"
            )
        rows = []
        for number, line in content[1:]:
            row = csv_row(line, f"{self.key}.path: {self.path}: line {number}")
            if len(row) != len(header):
                raise self.wrong(f"line {number}: {len(row)} columns, the header has {len(header)}")
            values = dict(zip(header, (value.strip() for value in row), strict=True))
            if not values[file]:
                raise self.wrong(f"line {number}: the file name is empty")
            rows.append((number, values[file], values["label"], values.get("class_name", "")))
        return rows

    def _check_exist(self, names: Sequence[str]) -> None:
        """Refuse missing files; lists each folder once: asking for every file is slow on NFS."""
        folders: dict[str, set[str]] = {}
        missing = []
        for name in names:
            folder, file = os.path.split(self.path.parent / name)
            if folder not in folders:
                folders[folder] = set(os.listdir(folder) if os.path.isdir(folder) else ())
            if file not in folders[folder]:
                missing.append(name)
        if missing:
            raise self.wrong(
                f"{missing[0]} is not there ({len(missing)} missing); "
                f"paths are relative to {self.path.parent}"
            )


class Scenes(List):
    """The scenes of this workflow; `path` is the list that the rule scenes writes."""

    keys = ("count", "size", "seed")
    inputs = {}

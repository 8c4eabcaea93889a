"""Sources `list` and `scenes`: lines `path label`, or a table.

The path may hold spaces; # starts a comment line. A table is separated by commas, semicolons or
tabs, with a header that has the columns `file` (or `path`, `file_name`, `filename`), `label` and
optionally `class_name`. Label -1 = unknown; where no label is a number, they are names of classes
(`rfatlas.sources.classes`; with `class_names`, the number of their line). Paths are relative to the
list file.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

from rfatlas.errors import RfatlasError
from rfatlas.sources import classes
from rfatlas.sources.listing import Listing
from rfatlas.sources.source import Source, csv_row

#: Columns that may hold the path, the first of them that is there.
FILE_COLUMNS = ("file", "path", "file_name", "filename")

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


class List(Source):
    """A list file, whose paths are relative to it."""

    asks_classes = True

    def listing(self) -> Listing:
        lines = [
            (number, line)
            for number, line in enumerate(self.lines("path"), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not lines:
            raise self.wrong("lists no image; lines must be `path label`")
        separator = self._separator(lines[0][1])
        if separator is None:
            rows = [(number, *self._plain_row(number, line)) for number, line in lines]
        else:
            rows = list(self._table(lines, separator))
        if not rows:
            raise self.wrong("lists no image below its header")
        return self.from_rows(rows)

    def from_rows(self, rows: Sequence[tuple[int, str, str, str]]) -> Listing:
        """Return the listing of rows (line number, path, label, class name or "")."""
        numbers, names, labels, words = (list(column) for column in zip(*rows, strict=True))
        places = [f"line {number}: {name}" for number, name in zip(numbers, names, strict=True)]
        array, class_names, facts = classes.labels_of(self, labels, places)
        names = self._existing(names)
        first: dict[str, int] = {}
        called: dict[int, str] = {}
        for number, name, value, word in zip(numbers, names, array.tolist(), words, strict=True):
            normal = os.path.normpath(name)
            if normal in first:
                raise self.wrong(f"line {number}: {name} is listed already in line {first[normal]}")
            first[normal] = number
            if word and called.setdefault(value, word) != word:
                raise self.wrong(
                    f"line {number}: label {value} is called {word!r} here and {called[value]!r} "
                    "above"
                )
        if any(label >= 0 for label in called):
            class_names = [called.get(i, str(i)) for i in range(int(array.max()) + 1)]
        return Listing(self.name, self.path.parent, names, array, class_names, **facts)

    def _separator(self, header: str) -> str | None:
        """The separator of the table that starts with this line; None if it starts none."""
        for separator in _SEPARATORS:
            columns = _columns(header, separator)
            if columns[0] in FILE_COLUMNS and (len(columns) > 1 or separator == ","):
                return separator
            if len(columns) > 1 and {"label", *FILE_COLUMNS} & set(columns):
                return separator
        return None

    def _plain_row(self, number: int, line: str) -> tuple[str, str, str]:
        parts = line.strip().rsplit(None, 1)
        if len(parts) != 2:
            signs = [name for sign, name in _SEPARATORS.items() if sign in line.strip()]
            hint = f"; separated by {signs[0]}, it needs a header `file,label`" if signs else ""
            raise self.wrong(
                f"line {number}: {line.strip()[:60]!r} has no label; write `path label`, label -1 "
                f"for unknown{hint}"
            )
        return parts[0], parts[1], ""

    def _table(
        self, lines: Sequence[tuple[int, str]], separator: str
    ) -> Iterator[tuple[int, str, str, str]]:
        header = _columns(lines[0][1], separator)
        file = next((column for column in FILE_COLUMNS if column in header), None)
        if file is None or ("label" not in header and not self.may_lack_labels):
            raise self.wrong(
                f"the header is {','.join(header)!r}; it needs the columns file (or "
                f"{', '.join(FILE_COLUMNS[1:])}) and label"
            )
        for number, line in lines[1:]:
            row = csv_row(line, f"{self.key}.path: {self.path}: line {number}", separator)
            if len(row) != len(header):
                raise self.wrong(f"line {number}: {len(row)} columns, the header has {len(header)}")
            values = dict(zip(header, (value.strip() for value in row), strict=True))
            if not values[file]:
                raise self.wrong(f"line {number}: the file name is empty")
            yield number, values[file], values.get("label", "-1"), values.get("class_name", "")

    #: Whether a table without labels is one of images of unknown classes.
    may_lack_labels = False

    def _existing(self, names: Sequence[str]) -> list[str]:
        """Return the names as the disk has them, of which Unicode forms (NFC, NFD) may differ.

        Refuses missing files. Lists each folder once: asking for every file is slow on NFS.
        """

        @cache
        def entries(folder: str) -> dict[str, str]:
            found = os.listdir(folder) if os.path.isdir(folder) else ()
            return {unicodedata.normalize("NFC", name): name for name in found} | {
                name: name for name in found
            }

        def actual(name: str) -> str | None:
            folder, file = os.path.split(name)
            place = os.path.join(self.path.parent, folder)
            if folder and not entries(place) and not os.path.isabs(folder):
                parent = actual(folder)
                if parent is None:
                    return None
                folder, place = parent, os.path.join(self.path.parent, parent)
            known = entries(place)
            found = known.get(file) or known.get(unicodedata.normalize("NFC", file))
            return None if found is None else os.path.join(folder, found)

        found = [actual(name) for name in names]
        missing = [name for name, there in zip(names, found, strict=True) if there is None]
        if missing:
            raise self.wrong(
                f"{missing[0]} is not there ({len(missing)} missing); "
                f"paths are relative to {self.path.parent}"
            )
        return found


def _columns(header: str, separator: str) -> list[str]:
    try:
        return [column.strip().lower() for column in csv_row(header, "header", separator)] or [""]
    except RfatlasError:
        return [""]


class Scenes(List):
    """The scenes of this workflow; `path` is the list that the rule scenes writes."""

    keys = ("count", "size", "seed")
    asks_classes = False

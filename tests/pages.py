"""What the pages of docs/ say of tables."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def columns_of(table: str) -> list[str]:
    """Names of the columns of a table in its section of docs/tables.md; `table` is the end of the
    section's heading, such as `orientation/v1.csv`."""
    text = (DOCS / "tables.md").read_text(encoding="utf-8")
    section = text.split(f"/{table}`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    return re.findall(r"`(\w+)`", " ".join(rows))

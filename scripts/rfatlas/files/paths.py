"""Which texts of the config name files of this machine: weights and factories."""

import os
import re
import urllib.parse
from pathlib import Path


def weights_file(weights: str) -> Path | None:
    """The file that `weights:` names, or None for an https URL, a seed, or a name of torchvision's
    weights (capitals, digits and _)."""
    if weights.startswith("file:"):
        weights = urllib.parse.unquote(re.sub(r"^file:(//)?", "", weights))
    elif re.match(r"[a-z]+:|random$", weights) or re.fullmatch(r"[A-Z][A-Z0-9_]*", weights):
        return None
    return Path(os.path.expanduser(weights))


def factory_file(factory: str) -> Path | None:
    """The file of `path/to/file.py:callable`, or None for a dotted path."""
    file, colon, _ = factory.rpartition(":")
    return Path(os.path.expanduser(file)) if colon and file.endswith(".py") else None

"""Factories: the function or class that builds a network, found, imported and called.

A factory may import what lies beside its file or in the working folder, as if Python had been
started there.
"""

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from rfatlas.errors import RfatlasError, printable
from rfatlas.files import paths, versions
from rfatlas.network.torchvision_ops import torchvision

# Of the network built last: what was imported before, the user's modules, where these were sought.
_before: set[str] = set()
_own: dict[str, str] = {}
_folders: list[str] = []


def build(factory: str, kwargs: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """Return the network that `factory` makes: a dotted path or `path/to/file.py:callable`.

    With `seed` the weights are those that the factory draws from torch's generator at that seed;
    the global generator is left as it was. Raises RfatlasError if the factory is missing, fails, or
    returns no `nn.Module`.
    """
    try:
        module = _built(factory, kwargs, seed)
    except RfatlasError as error:
        if "operator torchvision::" not in str(error):
            raise
        torchvision()
        module = _built(factory, kwargs, seed)
    if not isinstance(module, nn.Module):
        raise RfatlasError(
            f"factory: {factory} returned {type(module).__name__}; it must return a torch.nn.Module"
        )
    return module.eval()


def imported() -> list[str]:
    """Return the user's own files that were imported since the last `build` began, its factory
    among them: none of installed packages, of Python or of rfatlas."""
    foreign = (sysconfig.get_path("stdlib") + os.sep, str(versions.LIBRARY) + os.sep)
    for name in sys.modules.keys() - _before:
        file = os.path.abspath(getattr(sys.modules[name], "__file__", None) or foreign[0])
        installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
        if not file.startswith(foreign) and not installed and os.path.isfile(file):
            _own[name] = file
    return sorted(set(_own.values()))


def reason(error: BaseException) -> str:
    """Return the kind of an error and its message, on one line."""
    return f"{type(error).__name__}: {printable(str(error), 300)}"


def _built(factory: str, kwargs: Mapping[str, Any], seed: int | None) -> Any:
    file = paths.factory_file(factory)
    _start_over(([str(file.resolve().parent)] if file else []) + [os.getcwd()])
    try:
        make = _find(factory, file)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            return make(**kwargs)
    except RfatlasError:
        raise
    except (Exception, SystemExit) as error:
        raise RfatlasError(
            f"factory: {factory} with kwargs {dict(kwargs)} failed: {reason(error)}"
        ) from error
    finally:
        imported()


def _start_over(folders: list[str]) -> None:
    """Let imports look into `folders` first, and forget the user's modules of the network before:
    another folder may have others of the same names."""
    for name in _own:
        sys.modules.pop(name, None)
    for folder in set(_folders) & set(sys.path):
        sys.path.remove(folder)
    _own.clear()
    _before.clear()
    _before.update(sys.modules)
    _folders[:] = folders
    sys.path[:0] = folders
    importlib.invalidate_caches()


def _find(factory: str, file: Path | None) -> Callable[..., Any]:
    if file and not file.is_file():
        raise RfatlasError(f"factory: no file {file}; give path/to/file.py:callable")
    path, _, name = factory.rpartition(":" if file else ".")
    try:
        holder = _run(file) if file else importlib.import_module(path)
    except (Exception, SystemExit) as error:
        top = path.partition(".")[0]
        hint = ""
        if "relative import" in str(error):
            hint = "; give its dotted path from the working folder, as package.module.callable"
        elif not file and isinstance(error, ModuleNotFoundError) and error.name == top:
            hint = (
                f"; install {top} into the Python that runs the workflow, or correct the name: a "
                "dotted path or path/to/file.py:callable"
            )
        raise RfatlasError(
            f"factory: {factory!r} cannot be imported: {reason(error)}{hint}"
        ) from error
    make = getattr(holder, name, None)
    if not callable(make):
        known = [key for key, value in vars(holder).items() if callable(value)]
        near = difflib.get_close_matches(name, known, 8)
        raise RfatlasError(
            f"factory: {factory!r}: no callable {name!r} in {path}; "
            f"closest are {', '.join(near) or 'none'}"
        )
    return make


def _run(file: Path) -> ModuleType:
    name = "rfatlas_user_" + hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    specification = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module

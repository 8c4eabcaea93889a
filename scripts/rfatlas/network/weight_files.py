"""Weights: found, downloaded, checked, read from checkpoints, put into a network."""

import fcntl
import hashlib
import http.client
import logging
import os
import pickle
import re
import socket
import sys
import urllib.parse
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from rfatlas.errors import RfatlasError, printable
from rfatlas.files import disk, paths

log = logging.getLogger("rfatlas")

# What wrappers put into the names of a network's tensors, also in their middle.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Where the weights of several are, if a checkpoint has more than one set of them.
_FIRST = ("", "state_dict", "model_state_dict", "model", "net")
_SHOWN = 8
_MOST_LEVELS = 64
_MOST_CLASSES = 500
_DOWNLOAD_TIMEOUT_S = 60
# Weights hardly shrink in an archive; what swells so much was made to fill the memory.
_SWELLING = 100
_SMALL_BYTES = 1 << 26
# Calls that only make data, of the parts of Python, NumPy and torch.
_HARMLESS = re.compile(
    r"(pathlib|datetime|decimal|fractions|uuid|enum)\..*|types\.SimpleNamespace|operator\.getitem"
    r"|collections\.\w+|functools\.partial|copyreg\._reconstructor"
    r"|builtins\.(frozenset|list|tuple|dict|range|slice|object|int|float|str|bool)"
)


def random_seed(weights: str) -> int | None:
    """Return the seed of `random:<seed>`, or None if `weights` names no random network."""
    match = re.fullmatch(r"random:(\d+)", weights)
    return int(match[1]) if match else None


def is_name(weights: str) -> bool:
    """Return whether `weights` is a name of torchvision's: no file, URL or seed."""
    return paths.weights_file(weights) is None and ":" not in weights


def torchvision_weights(factory: str, name: str) -> Any:
    """Return torchvision's weights entry `name` of a torchvision factory.

    Raises RfatlasError if the factory is not torchvision's, or naming the entries that there are.
    """
    if not factory.startswith("torchvision.models."):
        raise RfatlasError(
            f"weights: {name!r} is not a path, URL or random:<seed>, and {factory} is not a "
            "torchvision factory with named weights"
        )
    from rfatlas.network.torchvision_ops import torchvision

    entries = torchvision().models.get_model_weights(factory.rpartition(".")[2])
    if name not in entries.__members__:
        raise RfatlasError(
            f"weights: {factory} has no weights {name!r}; it has {', '.join(entries.__members__)}"
        )
    return entries[name]


def fetch(url: str, sha256: str, folder: Path) -> Path:
    """Return the local path of an `https:` URL, downloaded into `folder` and checked.

    `sha256` holds at least 8 leading hex digits (torchvision's file names carry 8). A download
    appears under its name only when complete and checked. Raises RfatlasError on a wrong digest or
    a failed download.
    """
    path = folder / Path(urllib.parse.urlparse(url).path).name
    folder.mkdir(parents=True, exist_ok=True)
    # Two jobs that need the same weights: the second waits and finds them.
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path.is_file() and disk.sha256(path).startswith(sha256.lower())):
            _download(url, path, sha256.lower())
    return path


def _download(url: str, path: Path, sha256: str) -> None:
    """Fetch what lies on a URL into a file that appears when its digest is right."""
    log.info("downloading %s", url)
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)
    try:
        torch.hub.download_url_to_file(url, str(path), sha256, progress=False)
    except RuntimeError as error:
        raise RfatlasError(
            f"weights: {url}: expected sha256 {sha256}: {error}; it is another file, or broke off"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if disk.is_full(error):
            raise disk.no_room(path) from error
        raise RfatlasError(
            f"weights: {url} cannot be downloaded ({error}); fetch it by other means, then set "
            "weights to the file's path"
        ) from error


def cache_folder() -> Path:
    """Return the folder of downloads: $RFATLAS_CACHE, or `rfatlas` in the user's cache folder."""
    import pooch

    return Path(os.environ.get("RFATLAS_CACHE") or pooch.os_cache("rfatlas"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a file of weights by name, whatever the file is called: .safetensors,
    NumPy's .npz, or what torch.save writes.

    Tensors in dicts of dicts are named with the keys on the way, `ema/state_dict/conv1.weight`; a
    network that was pickled whole gives its state dict. No code of a pickle runs: objects of other
    classes are read as bare data. Raises RfatlasError if the file is missing, unreadable, calls
    functions, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise RfatlasError(f"weights: {path}: no such file")
    _refuse_bomb(path)
    try:
        content = _read(path)
        tensors = dict(_named(content, set()))
    except Exception as error:
        pickled = isinstance(error, pickle.UnpicklingError)
        refused = "; a file that holds pickled objects is refused: save its state_dict alone"
        raise RfatlasError(
            f"weights: {path} cannot be read as tensors ({_reason(error)})"
            f"{refused if pickled else ''}"
        ) from error
    if not tensors:
        keys = content if isinstance(content, dict) else []
        held = [f"{printable(str(key), 40)} ({type(content[key]).__name__})" for key in keys]
        raise RfatlasError(
            f"weights: {path} holds no named tensors, only "
            f"{_listed(held) if held else type(content).__name__}"
        )
    return tensors


def _reason(error: Exception) -> str:
    """The kind of an error and the line of its message that says what is wrong."""
    if isinstance(error, RfatlasError):
        return str(error)
    # torch puts advice before the cause.
    cause = str(error).rpartition("WeightsUnpickler error:")[2].strip() or str(error)
    return f"{type(error).__name__}: {printable(cause.strip().partition(chr(10))[0], 200)}"


def _refuse_bomb(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return
    packed = path.stat().st_size
    if size > max(_SWELLING * packed, _SMALL_BYTES):
        raise RfatlasError(
            f"weights: {path} has {packed} bytes but would expand to {size}; refused"
        )


def _read(path: Path) -> Any:
    """The content of a file of weights, by what it begins with."""
    with path.open("rb") as file:
        head = file.read(40)
    if head[8:9] == b"{":
        return load_file(path)
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            arrays = all(name.endswith(".npy") for name in archive.namelist())
        if arrays:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    elif not head.startswith(b"\x80"):
        raise RfatlasError(
            f"it begins with {head!r}, unlike safetensors, NumPy's archives and torch.save's files"
        )
    return _read_checkpoint(path)


def _read_checkpoint(path: Path) -> Any:
    """What torch.save wrote, read by torch's loader of tensors, in which every class that it does
    not know gets a stand-in without code."""
    stand_ins: list[tuple[type, str]] = []
    while True:
        try:
            with torch.serialization.safe_globals([*_numpy(), *stand_ins]):
                content = torch.load(path, map_location="cpu", weights_only=True)
            break
        except pickle.UnpicklingError as error:
            unknown = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
            if not unknown or len(stand_ins) >= _MOST_CLASSES:
                raise
        name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
        stand_ins.append((_stand_in(name), name))
    if stand_ins:
        names = _listed(name for _, name in stand_ins)
        log.info("weights: %s: not read, as it is no tensor: what is of %s", path, names)
    return content


def _stand_in(name: str) -> type:
    """A class without code for one that a pickle names: its objects are empty dicts, which the
    pickle then fills. Called as a function it gives such an object only where `name` makes data."""
    foreign = name.split(".")[0] not in sys.stdlib_module_names | {"torch", "numpy"}
    kinds = {"collections.defaultdict": OrderedDict, "collections.deque": list}

    class Called(type):
        def __call__(cls, *args: Any) -> Any:
            if not foreign and not _HARMLESS.fullmatch(name):
                raise pickle.UnpicklingError(f"it calls {printable(name, 80)}")
            return kinds.get(name, _Data)()

    return Called("StandIn", (), {"__new__": lambda cls, *args: OrderedDict()})


class _Data:
    """What a call in a pickle gave, less its content."""

    def __setstate__(self, state: Any) -> None:
        pass


def _numpy() -> list[tuple[Any, str]]:
    """What NumPy's arrays and scalars are pickled with, under its names of now and before 2.0."""
    # Objects of these classes may be filled; arrays are not made by a call of their class.
    known = [(_Data, "rfatlas.data"), (np.ndarray, "rfatlas.array"), (np.dtype, "numpy.dtype")]
    for core in ("numpy.core", "numpy._core"):
        known.append((np._core.multiarray.scalar, f"{core}.multiarray.scalar"))
        known.append((lambda *_: np.ndarray(0, np.uint8), f"{core}.multiarray._reconstruct"))
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"]}
    return known + [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in kinds]


def _named(value: Any, seen: set[int], name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint with their names; what is in several places, once."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor) and name:
        yield name, value
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for joint, key, child in _children(value):
            if name.count("/") < _MOST_LEVELS:
                yield from _named(child, seen, f"{name}{joint}{key}" if name else str(key))


def _children(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """(how its name is joined to the one before, key, value) of what a container holds."""
    state = getattr(value, "__dict__", {})
    if "_parameters" in state and "_modules" in state:  # a network, or part of one
        for part in ("_parameters", "_buffers", "_modules"):
            for key, child in state[part].items():
                if key not in state.get("_non_persistent_buffers_set", ()):
                    yield ".", key, child
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str | int):
            yield "/", key, child


def load_tensors(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], source: str, key: str | None = None
) -> None:
    """Copy `tensors`, named as by `read_tensors`, into the network.

    Their names may begin with the keys of dicts and with prefixes (`state_dict/module.`), where all
    tensors of the network are found behind one and the same; where there are several such, the
    weights are those below `key`. Raises RfatlasError that lists every missing, unexpected or
    misshaped tensor, those that are no floating-point numbers where the network has them, and those
    with NaN or infinite values.
    """
    own = module.state_dict()
    given = _fitting(own, tensors, source, key)
    # Old checkpoints lack these counters, and evaluation never reads them.
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    both = [name for name in own if name in given]
    misshaped = [name for name in both if given[name].shape != own[name].shape]
    fitting = [name for name in both if given[name].shape == own[name].shape]
    unreal = [
        f"{name} {given[name].dtype}".replace("torch.", "")
        for name in fitting
        if own[name].is_floating_point() and not given[name].is_floating_point()
    ]
    # Values that are finite in 64 bits need not be in 32.
    infinite = [
        _first_infinite(name, given[name].to(own[name].dtype))
        for name in fitting
        if given[name].is_floating_point()
        and not torch.isfinite(given[name].to(own[name].dtype)).all()
    ]
    sizes = [f"{n} {tuple(given[n].shape)} instead of {tuple(own[n].shape)}" for n in misshaped]
    problems = [
        f"{len(names)} {what}: {_listed(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshaped", sizes),
            ("of no floating-point numbers", unreal),
            ("with NaN or infinite values", infinite),
        )
        if names
    ]
    if missing or unexpected or misshaped:
        problems.append(
            f"the network's tensors begin with {_listed(own, 3)}, those of the file with "
            f"{_listed(tensors, 3)}"
        )
        problems += _guess(own, given, missing, unexpected, misshaped)
    if problems:
        raise RfatlasError(f"weights: {source} does not fit the network: {'; '.join(problems)}")
    module.load_state_dict({**own, **given})


def _listed(names: Iterable[str], most: int = _SHOWN) -> str:
    names = list(names)
    shown = ", ".join(printable(name, 100) for name in names[:most])
    more = len(names) - most
    return f"{shown} and {more} more" if more > 0 else shown


def _fitting(
    own: Mapping[str, torch.Tensor],
    tensors: Mapping[str, torch.Tensor],
    source: str,
    key: str | None,
) -> dict[str, torch.Tensor]:
    """The tensors of a file under the names of the network, and those beside them that it does not
    have; where none fit, the nearest to that."""
    asked = key.split(".") if key else []
    words = {name: re.split("[/.]", name) for name in tensors}
    words = {name: parts for name, parts in words.items() if parts[: len(asked)] == asked}
    if not words:
        known = dict.fromkeys(re.split("[/.]", name)[0] for name in tensors)
        raise RfatlasError(
            f"weights_key: {key!r}: {source} has no tensors below it; it has some below "
            f"{_listed(known)}"
        )
    names = {name: name.split(".") for name in own}
    shared = os.path.commonprefix(list(names.values()))
    inner = {name: parts[len(shared) :] for name, parts in names.items()}
    places = _places(words, names)
    fitting = [prefix for prefix, place in places.items() if _fits(own, tensors, place)]
    if not fitting and len({tuple(parts[:-1]) for parts in inner.values()}) > 1:
        # The network is wrapped, its weights are not.
        within = _places(words, inner)
        fitting = [prefix for prefix, place in within.items() if _fits(own, tensors, place)]
        places = within if fitting else places

    def beside(prefix: tuple[str, ...]) -> list[str]:
        used = set(places[prefix].values())
        dicts = {name.rpartition("/")[0] for name in used}
        return [
            name
            for name, parts in words.items()
            if name not in used
            and name.rpartition("/")[0] in dicts
            and tuple(parts[: len(prefix)]) == prefix
        ]

    def order(prefix: tuple[str, ...]) -> tuple[bool, int]:
        first = prefix[0] if prefix else ""
        return bool(beside(prefix)), _FIRST.index(first) if first in _FIRST else len(_FIRST)

    fitting.sort(key=order)
    if not places:
        return {name: tensors[name] for name in words}
    nearest = max(places, key=lambda prefix: len(places[prefix]))
    chosen = fitting[0] if fitting else nearest
    place = places[chosen]
    for prefix in fitting or [chosen]:
        _check_plain({name: tensors[name] for name in places[prefix].values()}, source)
    others = [
        ".".join(prefix)
        for prefix in fitting[1:]
        if any(not torch.equal(tensors[place[n]], tensors[places[prefix][n]]) for n in place)
    ]
    if others:
        log.warning(
            "weights: %s: those below %r are taken; those below %s fit, too: choose by weights_key",
            *(source, printable(".".join(chosen)), _listed(map(repr, others))),
        )
    renamed = {mine: name for mine, name in place.items() if mine != name}
    if fitting and renamed:
        log.info(
            "weights: %s: %s of the network is %s of the file, and so on (%d of its %d tensors)",
            *(source, *map(printable, next(iter(renamed.items()))), len(place), len(tensors)),
        )
    found = {mine: tensors[name] for mine, name in place.items()}
    return {name: tensors[name] for name in beside(chosen)} | found


def _places(
    words: Mapping[str, list[str]], names: Mapping[str, list[str]]
) -> dict[tuple[str, ...], dict[str, str]]:
    """For every beginning of the names in a file, here as lists of words: {name of the network:
    name of the file that is the same behind this beginning}."""
    exact = {tuple(parts): name for name, parts in names.items()}
    loose = {_unwrapped(parts): name for name, parts in names.items()}
    places: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name, parts in words.items():
        for start in range(min(len(parts), _MOST_LEVELS)):
            prefix, stem = tuple(parts[:start]), tuple(parts[start:])
            if stem in exact:
                places[prefix][exact[stem]] = name
            elif stem[0] not in _WRAPPERS and _unwrapped(stem) in loose:
                places[prefix].setdefault(loose[_unwrapped(stem)], name)
    return places


def _unwrapped(parts: Iterable[str]) -> tuple[str, ...]:
    return tuple(part for part in parts if part not in _WRAPPERS)


def _fits(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], place: Mapping[str, str]
) -> bool:
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    return needed <= place.keys() and all(
        tensors[name].shape == own[mine].shape for mine, name in place.items()
    )


def _check_plain(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise RfatlasError(
                f"weights: {source}: {printable(name, 80)} is a quantized or sparse tensor, or one "
                "without values; save plain ones"
            )


def _guess(
    own: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
) -> Iterator[str]:
    """What may be behind tensors that do not fit, in a few words."""
    heads = {name.rpartition(".")[0] for name in misshaped}
    head = list(own)[-1].rpartition(".")[0]
    if misshaped and not missing and not unexpected:
        sizes = {(given[n].shape[:1], own[n].shape[:1]) for n in misshaped}
        old, new = next(iter(sizes))
        if heads == {head} and len(sizes) == len(old) == len(new) == 1:
            yield (
                f"perhaps {head} has {old[0]} outputs there and {new[0]} here: the number "
                "of classes is a keyword argument of most factories (kwargs)"
            )
        else:
            yield "perhaps the same network in another width, or with other blocks"
    elif not missing and not misshaped:
        yield "perhaps the factory builds a part of that network, or a shallower one"
    elif not unexpected and not misshaped:
        yield "perhaps the file holds a part of the network, or a shallower one"
    elif [own[n].shape for n in missing] == [given[n].shape for n in unexpected]:
        old, new = printable(unexpected[0], 100), missing[0]
        yield f"perhaps the same tensors under other names: {old} there is {new} here"
    elif len(missing) > len(own) / 2:
        yield "perhaps the weights of another network"


def _first_infinite(name: str, tensor: torch.Tensor) -> str:
    """Return `name[index] = value` of a tensor's first value that is not finite."""
    index = torch.nonzero(~torch.isfinite(tensor))[0].tolist()
    return f"{name}[{', '.join(map(str, index))}] = {tensor[tuple(index)].item()}"


def digest(module: nn.Module) -> str:
    """Return the sha256 (hex) of all tensors of the network: names, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()

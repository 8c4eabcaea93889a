"""Weights: found, downloaded, checked, read from checkpoints, put into a network."""

import fcntl
import hashlib
import http.client
import logging
import os
import re
import socket
import urllib.parse
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from rfatlas.errors import RfatlasError, printable
from rfatlas.files import disk

log = logging.getLogger("rfatlas")

_NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 8
_DOWNLOAD_TIMEOUT_S = 60
# Weights hardly shrink in an archive; what swells so much was made to fill the memory.
_SWELLING = 100
_SMALL_BYTES = 1 << 26


def random_seed(weights: str) -> int | None:
    """Return the seed of `random:<seed>`, or None if `weights` names no random network."""
    match = re.fullmatch(r"random:(\d+)", weights)
    return int(match[1]) if match else None


def is_local(weights: str) -> bool:
    """Return whether `weights` names a file of this machine (a path, not a name, URL or seed)."""
    return Path(weights).suffix in _READERS and not re.match(r"[a-z]+:", weights)


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
    """Return the local path of a `file:` or `https:` URL, downloaded into `folder` and checked.

    `sha256` holds at least 8 leading hex digits (torchvision's file names carry 8). A download
    appears under its name only when complete and checked. Raises RfatlasError on a wrong digest or
    a failed download.
    """
    parts = urllib.parse.urlparse(url)
    if parts.scheme == "file":
        path = Path(urllib.parse.unquote(parts.path))
        if not path.is_file():
            raise RfatlasError(f"weights: {url}: no such file")
        check_digest(path, url, sha256)
        return path
    path = folder / Path(parts.path).name
    folder.mkdir(parents=True, exist_ok=True)
    # Two jobs that need the same weights: the second waits and finds them.
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path.is_file() and sha256_of(path).startswith(sha256.lower())):
            _download(url, path, sha256.lower())
    return path


def check_digest(path: Path, url: str, sha256: str) -> None:
    """Raise RfatlasError unless the sha256 of a file begins with the hex digits expected."""
    found = sha256_of(path)
    if not found.startswith(sha256.lower()):
        raise RfatlasError(f"weights: {url} has sha256 {found}, expected {sha256}")


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


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return the folder of downloads: $RFATLAS_CACHE, or `rfatlas` in the user's cache folder."""
    import pooch

    return Path(os.environ.get("RFATLAS_CACHE") or pooch.os_cache("rfatlas"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the named tensors of a .safetensors, .npz, .pth, .pt or .th file.

    Pickled checkpoints are read with torch's tensor-only loader, so no code of theirs runs; a
    checkpoint may keep its tensors under `state_dict`, `model_state_dict`, `model` or `net`, and
    carry `module.` prefixes. Raises RfatlasError if the file is missing, unreadable, holds code, or
    no tensors.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise RfatlasError(f"weights: {path}: unknown ending; use one of {', '.join(_READERS)}")
    if not path.is_file():
        raise RfatlasError(f"weights: {path}: no such file")
    _refuse_bomb(path)
    try:
        content = reader(path)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise RfatlasError(
            f"weights: {path} cannot be read as tensors ({type(error).__name__}: "
            f"{printable(reason, 200)}); a file that holds pickled objects is refused: save its "
            "state_dict alone"
        ) from error
    for key in _NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {}
    if isinstance(content, dict):
        tensors = {
            name: tensor
            for name, tensor in content.items()
            if isinstance(name, str) and isinstance(tensor, torch.Tensor)
        }
    if not tensors:
        raise RfatlasError(f"weights: {path} holds no named tensors")
    _check_plain(tensors, path)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


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


def _check_plain(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise RfatlasError(
                f"weights: {path}: {printable(name, 80)} is a quantized or sparse tensor, or one "
                "without values; save plain ones"
            )


def _read_checkpoint(path: Path) -> Any:
    # A checkpoint often notes its accuracy as a NumPy scalar, which is data, not code.
    scalar_types = [np.dtype, np._core.multiarray.scalar, *_numpy_dtype_classes()]
    with torch.serialization.safe_globals(scalar_types):
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_dtype_classes() -> list[type]:
    return [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "b1")]


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": load_file,
    ".npz": _read_npz,
    ".pth": _read_checkpoint,
    ".pt": _read_checkpoint,
    ".th": _read_checkpoint,
}


def load_tensors(module: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy `tensors` into the network.

    Raises RfatlasError that lists every missing, unexpected or misshaped tensor, those that are no
    floating-point numbers where the network has them, and those with NaN or infinite values.
    """
    own = module.state_dict()
    problems = []
    # Old checkpoints lack these counters, and evaluation never reads them.
    missing = [n for n in own if n not in tensors and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    given = [name for name in own if name in tensors]
    misshaped = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in given
        if tensors[name].shape != own[name].shape
    ]
    fitting = [name for name in given if tensors[name].shape == own[name].shape]
    unreal = [
        f"{name} {tensors[name].dtype}".replace("torch.", "")
        for name in fitting
        if own[name].is_floating_point() and not tensors[name].is_floating_point()
    ]
    # Values that are finite in 64 bits need not be in 32.
    infinite = [
        _first_infinite(name, tensors[name].to(own[name].dtype))
        for name in fitting
        if tensors[name].is_floating_point()
        and not torch.isfinite(tensors[name].to(own[name].dtype)).all()
    ]
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("misshaped", misshaped),
        ("of no floating-point numbers", unreal),
        ("with NaN or infinite values", infinite),
    ):
        if names:
            shown = ", ".join(printable(name, 100) for name in names[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            problems.append(f"{len(names)} {what}: {shown}{more}")
    if problems:
        raise RfatlasError(f"weights: {source} does not fit the network: {'; '.join(problems)}")
    module.load_state_dict({**own, **tensors})


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

"""Stage `model`: build a network from its factory, load its weights as tensors, describe its
layers.

The stage writes `results/<run>/model.safetensors` (every tensor of the network, whatever form its
weights came in, with factory and preprocessing in the header) and `results/<run>/model.json`
(layers, receptive fields, filter norms). All later stages load these two and nothing else.
"""

import contextlib
import difflib
import fcntl
import functools
import hashlib
import http.client
import importlib
import importlib.util
import json
import logging
import math
import os
import re
import socket
import sys
import urllib.parse
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rfatlas.errors import RfatlasError, printable
from rfatlas.files import disk, versions
from rfatlas.network import graph

log = logging.getLogger("rfatlas")

_NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 8
_DOWNLOAD_TIMEOUT_S = 60
# Weights hardly shrink in an archive; what swells so much was made to fill the memory.
_SWELLING = 100
_SMALL_BYTES = 1 << 26


# ---- factory


def build(factory: str, kwargs: Mapping[str, Any], seed: int | None = None) -> nn.Module:
    """Return the network that `factory` makes: a dotted path or `path/to/file.py:callable`.

    With `seed` the weights are those that the factory draws from torch's generator at that seed;
    the global generator is left as it was. Raises RfatlasError if the factory is missing, fails, or
    returns no `nn.Module`.
    """
    make = _find_factory(factory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        try:
            module = make(**kwargs)
        except (Exception, SystemExit) as error:
            raise RfatlasError(
                f"factory: {factory} with kwargs {dict(kwargs)} failed: {_reason(error)}"
            ) from error
    if not isinstance(module, nn.Module):
        raise RfatlasError(
            f"factory: {factory} returned {type(module).__name__}; it must return a torch.nn.Module"
        )
    return module.eval()


def _find_factory(factory: str) -> Callable[..., nn.Module]:
    if ":" in factory:
        path, _, name = factory.rpartition(":")
        holder = _import_file(path)
    else:
        path, _, name = factory.rpartition(".")
        if path.split(".")[0] == "torchvision":
            from rfatlas.network.torchvision_ops import torchvision

            torchvision()
        try:
            holder = importlib.import_module(path)
        except (ImportError, ValueError) as error:
            raise RfatlasError(
                f"factory: {factory!r} cannot be imported ({error}); "
                "use a dotted path or path/to/file.py:callable"
            ) from error
    make = getattr(holder, name, None)
    if not callable(make):
        known = [key for key, value in vars(holder).items() if callable(value)]
        near = difflib.get_close_matches(name, known, _SHOWN)
        raise RfatlasError(
            f"factory: {factory!r}: no callable {name!r} in {path}; "
            f"closest are {', '.join(near) or 'none'}"
        )
    return make


@functools.cache
def _import_file(path: str) -> Any:
    if not Path(path).is_file():
        raise RfatlasError(f"factory: no file {path}; give path/to/file.py:callable")
    name = "rfatlas_user_" + hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:12]
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RfatlasError(f"factory: {path} cannot be run: {_reason(error)}") from error
    return module


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {printable(str(error), 300)}"


# ---- weights


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
            f"weights: {name!r} is no path, URL or random:<seed>, and {factory} is no torchvision "
            "factory with named weights"
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
        _check_digest(path, url, sha256)
        return path
    path = folder / Path(parts.path).name
    folder.mkdir(parents=True, exist_ok=True)
    # Two jobs that need the same weights: the second waits and finds them.
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path.is_file() and _sha256(path).startswith(sha256.lower())):
            _download(url, path, sha256.lower())
    return path


def _check_digest(path: Path, url: str, sha256: str) -> None:
    found = _sha256(path)
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


def _sha256(path: Path) -> str:
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
            f"weights: {path} has {packed} bytes and would swell to {size}; no weights do"
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


# ---- preprocessing


def resolve_input(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return {resize, crop, mean, std}: from torchvision's named weights, with what the config
    gives put over it.

    `resize` and `crop` in pixels, `mean` and `std` per colour channel of code values in 0..1.
    Raises RfatlasError if neither knows a value.
    """
    known: dict[str, Any] = {}
    weights = config["weights"]
    named = not is_local(weights) and random_seed(weights) is None and "://" not in weights
    if named and not weights.startswith("file:"):
        transform = torchvision_weights(config["factory"], weights).transforms()
        known = {
            "resize": int(transform.resize_size[0]),
            "crop": int(transform.crop_size[0]),
            "mean": list(transform.mean),
            "std": list(transform.std),
        }
    known |= {k: v for k, v in (config.get("input") or {}).items() if v is not None}
    missing = [key for key in ("resize", "crop", "mean", "std") if key not in known]
    if missing:
        raise RfatlasError(
            f"input: {', '.join(missing)} not given, and only torchvision's named weights bring "
            "their own"
        )
    return known


def preprocess(
    images: np.ndarray | torch.Tensor,
    mean: Iterable[float],
    std: Iterable[float],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return images uint8 (N, H, W, 3) as the network's input, float32 (N, 3, H, W), in channels-
    last memory."""
    batch = torch.as_tensor(images).to(device).permute(0, 3, 1, 2)
    mean = torch.tensor(list(mean), device=device).view(1, 3, 1, 1)
    std = torch.tensor(list(std), device=device).view(1, 3, 1, 1)
    return (batch.float() / 255 - mean) / std


# ---- description


def describe(module: nn.Module, input: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the workflow needs to know of a network, JSON-ready: `model.json` without the
    norms.

    `input` as `resolve_input` gives it. Each entry of `layers` holds name, channels, height, width,
    rectified, cumulative gflops, and the receptive field's size, stride and start in pixels (null
    where a unit sees the whole image).
    """
    traced = graph.trace(module, torch.zeros(1, 3, input["crop"], input["crop"]))
    names = traced.layers()
    return {
        "traceable": traced.traceable,
        "parameters": sum(p.numel() for p in module.parameters()),
        "input": dict(input),
        "n_classes": traced.classes(),
        "gflops": traced.gflops(),
        "modules": names,
        "default_layers": default_layers(module, names),
        "layers": [_describe_layer(traced, name) for name in names if _is_map(traced, name)],
    }


def default_layers(module: nn.Module, names: list[str]) -> list[str]:
    """Return the stem (`conv1` and `maxpool` where they exist) and every residual block output, in
    order.

    A block is a module that holds convolutions, sits in a sequence of its like (`layer1.0`,
    `stages.2.1`), and is not itself such a sequence.
    """
    modules = dict(module.named_modules())
    stem = [name for name in ("conv1", "maxpool") if name in names]
    blocks = [
        name
        for name in names
        if re.search(r"\.\d+$", name)
        and name.count(".") == 1
        and sum(isinstance(child, nn.Conv2d) for child in modules[name].modules()) >= 2
    ]
    return [name for name in names if name in stem or name in blocks]


def _is_map(traced: Any, name: str) -> bool:
    try:
        traced.shape(name)
    except RfatlasError:
        return False
    return True


def _describe_layer(traced: Any, name: str) -> dict[str, Any]:
    channels, height, width = traced.shape(name)
    geometry = traced.geometry(name)
    return {
        "name": name,
        "channels": channels,
        "height": height,
        "width": width,
        "rectified": traced.rectified(name),
        "size": max(geometry.size) if geometry else None,
        "stride": max(geometry.stride) if geometry else None,
        "start": geometry.start[0] if geometry else None,
        "gflops": traced.gflops(name),
    }


def filter_norms(traced: Any, name: str) -> list[float]:
    """Return the filter norm of every channel of a layer; NaN where no single filter feeds it."""
    norms = traced.filter_norms(name)
    return [math.nan] * traced.shape(name)[0] if norms is None else norms.tolist()


# ---- batch norm of a random network


def reestimate_batch_norm(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set every batch norm's running mean and variance to the average over `batches` (N, 3, H, W).

    A freshly drawn network has no statistics of its own; without this its activations would shrink
    or explode with depth. Changes `module` in place and leaves it in evaluation mode.
    """
    norms = [
        child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


# ---- the stage's files


@dataclass
class LoadedModel:
    """A network ready for analysis, on one device."""

    module: nn.Module
    graph: Any
    description: dict[str, Any]
    weights_sha256: str
    device: torch.device

    def preprocess(self, images: np.ndarray | torch.Tensor, device: Any = None) -> torch.Tensor:
        """Return images uint8 (N, H, W, 3) as the network's input on `device` (default: the
        network's own)."""
        input = self.description["input"]
        return preprocess(
            images, input["mean"], input["std"], self.device if device is None else device
        )


def make(config: Mapping[str, Any]) -> nn.Module:
    """Return the network of one entry of `models:`, with its weights loaded and checked.

    Downloads what is named by URL or by torchvision's name. A random network still lacks its batch-
    norm statistics (see `reestimate_batch_norm`).
    """
    factory, weights = config["factory"], config["weights"]
    seed = random_seed(weights)
    module = build(factory, config.get("kwargs") or {}, seed)
    if seed is None:
        path = locate(config)
        load_tensors(module, read_tensors(path), str(weights))
    return module


def locate(config: Mapping[str, Any]) -> Path:
    """Return the file that holds the weights of an entry of `models:`, downloading it if need
    be."""
    weights, sha256 = config["weights"], config.get("sha256") or ""
    if is_local(weights):
        path = Path(weights)
        if sha256 and path.is_file() and not _sha256(path).startswith(sha256.lower()):
            raise RfatlasError(f"weights: {path} has sha256 {_sha256(path)}, expected {sha256}")
        return path
    if re.match(r"(file|https):", weights):
        return fetch(weights, sha256, cache_folder())
    url = torchvision_weights(config["factory"], weights).url
    digits = re.search(r"-([0-9a-f]{8,})\.", url)
    return fetch(url, digits[1] if digits else "", cache_folder())


def save(
    module: nn.Module, path: Path, config: Mapping[str, Any], input: Mapping[str, Any]
) -> None:
    """Write all tensors of the network, with what is needed to build it again, to a .safetensors
    file."""
    header = {
        "factory": config["factory"],
        "kwargs": config.get("kwargs") or {},
        "weights": config["weights"],
        "input": dict(input),
        "weights_sha256": digest(module),
        "stage_version": versions.stage("model"),
    }
    # Tensors that share memory are written once each under their own name.
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(header, sort_keys=True)
    metadata = {"rfatlas": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    try:
        save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        if disk.is_full(error):
            size = sum(tensor.nbytes for tensor in tensors.values())
            raise disk.no_room(path, size) from error
        raise
    os.replace(temporary, path)


def read_header(path: Path | str) -> dict[str, Any]:
    """Return the header that `save` wrote; raises RfatlasError if the file is missing, damaged or
    not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        text = metadata["rfatlas"]
        # Files of older versions lack it.
        expected = metadata.get("sha256")
        if expected not in (None, hashlib.sha256(text.encode()).hexdigest()):
            raise ValueError("its header does not have its digest")
        return json.loads(text)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RfatlasError(
            f"{path}: no model file of this workflow, or a damaged one ({error}); delete it and "
            "rerun the stage model"
        ) from error


def load(path: Path | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Return the network that `save` wrote, on `device`, in channels-last memory, traced.

    Raises RfatlasError if the file is damaged or its tensors are not those that were written.
    """
    header = read_header(path)
    module = build(header["factory"], header["kwargs"])
    load_tensors(module, load_file(path), str(path))
    if digest(module) != header["weights_sha256"]:
        raise RfatlasError(
            f"{path}: its tensors do not have the digest in its header; delete it and rerun"
        )
    device = torch.device(device)
    crop = header["input"]["crop"]
    traced = graph.trace(module, torch.zeros(1, 3, crop, crop))
    module.to(device, memory_format=torch.channels_last)
    return LoadedModel(module, traced, header, header["weights_sha256"], device)


# ---- asked by the workflow before the DAG is built


def _describe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    weights = config["weights"]
    local = is_local(weights) or weights.startswith("file:")
    input = resolve_input(config)
    # What lies on a URL is checked by the job that downloads it; everything else right now.
    module = make(config) if local else build(config["factory"], config.get("kwargs") or {}, 0)
    try:
        return describe(module, input)
    except RfatlasError:
        raise
    except Exception as error:
        raise RfatlasError(
            f"factory: {config['factory']} makes a network that cannot look at an image of 3 x "
            f"{input['crop']} x {input['crop']}: {_reason(error)}"
        ) from error


def main() -> None:
    """Answer `describe` on standard input and output, as JSON (see `rfatlas.plan.preflight`)."""
    if sys.argv[1:] != ["describe"]:
        sys.exit("usage: python -m rfatlas.network.model describe < request.json")
    request = json.load(sys.stdin)
    descriptions, errors = {}, []
    for name, config in request["models"].items():
        try:
            # What a factory prints must not end up in the answer.
            with contextlib.redirect_stdout(sys.stderr):
                descriptions[name] = _describe_config(config)
        except RfatlasError as error:
            errors.append(f"models.{name}.{error}")
    json.dump({"descriptions": descriptions, "errors": errors}, sys.stdout)


if __name__ == "__main__":
    main()

"""Stage `model`: build a network, load its weights as tensors, describe its layers.

The stage writes `results/<run>/model.safetensors` (every tensor of the network, whatever form its
weights came in, with factory and preprocessing in the header) and `results/<run>/model.json`
(layers, receptive fields, filter norms). All later stages load these two and nothing else.
"""

import collections
import contextlib
import hashlib
import importlib
import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._pytree import tree_leaves

from rfatlas.errors import RfatlasError
from rfatlas.files import disk, paths, versions
from rfatlas.network import devices, export, factories, graph, weight_files
from rfatlas.network.factories import build

log = logging.getLogger("rfatlas")


# ---- preprocessing


def resolve_input(config: Mapping[str, Any], module: nn.Module | None = None) -> dict[str, Any]:
    """Return {resize, crop, mean, std, interpolation}: from torchvision's named weights or from
    what timm says of its network `module`, with what the config gives put over it.

    `resize` and `crop` in pixels (`resize` as `rfatlas.images.decoding.decode` has it), `mean` and
    `std` per colour channel of code values in 0..1. Raises RfatlasError if neither knows a value.
    """
    known = {"interpolation": "bilinear"}
    weights = config["weights"]
    if "timm" in sys.modules and hasattr(module, "pretrained_cfg"):
        known |= _input_of_timm(module)
    elif weight_files.is_name(weights):
        told = vars(weight_files.torchvision_weights(config["factory"], weights).transforms())
        known |= {key: list(told[key]) for key in ("mean", "std") if key in told}
        known["interpolation"] = getattr(told.get("interpolation"), "value", "bilinear")
        # What is not for single photographs has pairs, or none.
        for key in ("resize", "crop"):
            if len(sides := told.get(f"{key}_size") or []) == 1:
                known[key] = int(sides[0])
    for key, value in (config.get("input") or {}).items():
        if value != "default" and (value is not None or key == "resize"):
            known[key] = value
    sides = known.get("resize")
    if isinstance(sides, list) and sides[0] == sides[1]:
        known.setdefault("crop", sides[0])
    missing = [key for key in ("resize", "crop", "mean", "std") if key not in known]
    if missing:
        raise RfatlasError(
            f"input: {', '.join(missing)} not given, and only torchvision's named weights and "
            "timm's networks bring their own"
        )
    if known["resize"] and known["crop"] > np.min(known["resize"]):
        raise RfatlasError(
            f"input: crop {known['crop']} is more than resize, {known['resize']}; give both"
        )
    return known


def _input_of_timm(module: nn.Module) -> dict[str, Any]:
    """The settings with which timm's own transform for evaluation shows images to its network."""
    # Not a requirement of rfatlas: who has such a network has timm.
    found = importlib.import_module("timm.data").resolve_model_data_config(module)
    _, height, width = found["input_size"]
    known = {key: list(found[key]) for key in ("mean", "std")}
    known["interpolation"] = found["interpolation"]
    side = math.floor(height / found["crop_pct"])
    if height == width and found["crop_mode"] in ("center", "squash"):
        squashed = found["crop_mode"] == "squash"
        known |= {"resize": [side, side] if squashed else side, "crop": height}
    return known


def preprocess(
    images: np.ndarray | torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return images uint8 (N, H, W, 3) as the network's input, float32 (N, 3, H, W), in channels-
    last memory."""
    batch = torch.as_tensor(images).to(device).permute(0, 3, 1, 2)
    return normalise(batch.float() / 255, {"mean": mean, "std": std})


def normalise(pixels: torch.Tensor, input: Mapping[str, Any]) -> torch.Tensor:
    """Return pixels (N, 3, H, W) in 0..1 as the network's input, by its `mean` and `std`, three
    numbers each, in channels-last memory."""
    mean, std = (
        torch.tensor(input[key], device=pixels.device).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    normalised = (pixels - mean) / std
    return normalised.contiguous(memory_format=torch.channels_last)


# ---- description


def trace(module: nn.Module, input: Mapping[str, Any]) -> graph.Graph:
    """Return the graph of a network for images as `input` (see `resolve_input`) has them, after
    looking that it tells one image from another and from nothing else.

    Raises RfatlasError where torch cannot export the network, where it is not deterministic, and
    where what it finds in one image depends on others.
    """
    # Noise, dark and bright, so that a network that chooses by values shows it.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, input["crop"], input["crop"], generator=generator)
    images += torch.tensor([0.0, -2, 2]).view(3, 1, 1, 1)
    traced = graph.trace(module, images)
    with torch.inference_mode():
        first, again = (_outputs(module(images)) for _ in range(2))
        alone = [_outputs(module(image[None])) for image in images]
        if not _agree(first, again):
            raise RfatlasError(
                "factory: the network gives another output at each pass in evaluation mode: one of "
                "its modules draws random numbers (F.dropout needs training=self.training)"
            )
        if not _agree(first, [torch.cat(parts) for parts in zip(*alone, strict=True)]):
            raise RfatlasError(
                "factory: the network's output for an image depends on the other images of its "
                "batch: a batch norm has no running statistics (track_running_stats=False), or "
                "something else normalises, or is chosen, by the batch's values"
            )
        whole = traced.whole()
        if whole is not None and not _agree(first, [whole(images)]):
            raise RfatlasError(
                "factory: the network chooses by the values in an image what to do with it; only "
                "networks that do the same for all images can be analysed"
            )
    return traced


def _outputs(answer: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(answer) if isinstance(one, torch.Tensor)]


def _agree(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    """Return whether outputs are the same to rounding, on the scale of the largest."""
    return all(
        torch.allclose(a, b, rtol=0, atol=1e-4 * b.abs().nan_to_num().max(), equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def describe(module: nn.Module, traced: graph.Graph, input: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the workflow needs to know of a network, JSON-ready: `model.json` without the
    norms.

    `input` as `resolve_input` gives it. Each entry of `layers` holds name, channels, height, width,
    rectified, cumulative gflops, `rf_kind` (see `geometry.Field.kind`), and the local receptive
    field's size, stride and start (y, x) in pixels (null where a unit has no place in the image).
    """
    names = traced.layers()
    default = default_layers(module, traced)
    log.info("default layers: %s", ", ".join(default) or "none")
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "input": dict(input),
        "n_classes": traced.classes(),
        "gflops": traced.gflops(),
        "modules": names,
        "default_layers": default,
        "layers": [_describe_layer(traced, name) for name in names if traced.is_map(name)],
    }


def default_layers(module: nn.Module, traced: graph.Graph) -> list[str]:
    """Return the stem (the first convolution, and the poolings before the first block), every
    block, and the last value of each resolution that has no block, in order.

    A block is a module of several convolutions that is not the only one of its kind, outside any
    other block; a stage, which hands on what its last block gives, is none.
    """
    modules = dict(module.named_modules())
    maps = [n for n in traced.layers() if traced.is_map(n) and traced.field(n).local is not None]
    blocks = _blocks(modules, maps, traced)
    first = maps.index(blocks[0]) if blocks else len(maps)
    before = [name for name in maps[:first] if not name.startswith(tuple(f"{b}." for b in blocks))]
    stem = [name for name in before if name.split(".")[-1] == "conv1"][:1]
    stem = stem or [name for name in before if traced.is_convolution(name)][:1]
    if blocks:
        # A pooling may be a module of several steps, such as one that blurs.
        poolings = [name for name in before if traced.is_pooling(name) and not traced.filters(name)]
        inside = tuple(f"{name}." for name in poolings)
        stem += [name for name in poolings if not name.startswith(inside)]
    covered = {traced.field(name).local.stride for name in (stem if blocks else []) + blocks}
    # Of modules that give one value, the innermost.
    innermost: dict[Any, str] = {}
    for name in maps:
        innermost.setdefault(traced.node(name), name)
    last = {
        stride: name
        for name in innermost.values()
        if (stride := traced.field(name).local.stride) not in covered
    }
    return [name for name in maps if name in {*last.values(), *blocks, *stem}]


def _blocks(modules: dict[str, nn.Module], maps: list[str], traced: graph.Graph) -> list[str]:
    kinds = collections.Counter(map(type, modules.values()))
    several = [name for name in maps if traced.filters(name) >= 2]

    def hands_on(name: str) -> bool:
        sequence = isinstance(modules[name], (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        inside = [other for other in maps if other.startswith(f"{name}.")]
        if not sequence:
            inside = [one for one in inside if one in several]
            inside = [one for one in inside if not isinstance(modules[one], nn.Sequential)]
        return any(traced.node(other) is traced.node(name) for other in inside)

    found = []
    for name in sorted(several, key=lambda name: name.count(".")):
        repeated = kinds[type(modules[name])] > 1 or name.split(".")[-1].isdigit()
        outside = not any(name.startswith(f"{block}.") for block in found)
        if repeated and outside and not hands_on(name):
            found.append(name)
    return [name for name in maps if name in found]


def _describe_layer(traced: graph.Graph, name: str) -> dict[str, Any]:
    channels, height, width = traced.shape(name)
    field = traced.field(name)
    return {
        "name": name,
        "channels": channels,
        "height": height,
        "width": width,
        "rectified": traced.rectified(name),
        "rf_kind": field.kind,
        "probed": list(field.probed),
        "size": max(field.local.size) if field.local else None,
        "stride": max(field.local.stride) if field.local else None,
        "start": list(field.local.start) if field.local else None,
        "gflops": traced.gflops(name),
    }


def norms(traced: graph.Graph, name: str) -> dict[str, list[float]]:
    """Return of every channel of a layer `filter_norm`, of the filter that feeds it, and
    `next_norm`, of those that read it (see `Graph`); NaN where these are not known."""
    found = {"filter_norm": traced.filter_norms(name), "next_norm": traced.next_norms(name)}
    unknown = [math.nan] * traced.shape(name)[0]
    return {key: unknown if one is None else one.tolist() for key, one in found.items()}


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

# Begins the names of tensors that the graph needs and the network does not keep.
_GRAPH = "@graph/"


@dataclass
class LoadedModel:
    """A network ready for analysis, on one device."""

    module: nn.Module
    graph: graph.Graph
    description: dict[str, Any]
    weights_sha256: str
    device: torch.device

    def preprocess(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return images uint8 (N, H, W, 3) as the network's input."""
        input = self.description["input"]
        return preprocess(images, input["mean"], input["std"], self.device)


def make(config: Mapping[str, Any]) -> nn.Module:
    """Return the network of one entry of `models:`, with its weights loaded and checked.

    Downloads what is named by URL or by torchvision's name. A random network still lacks its batch-
    norm statistics (see `reestimate_batch_norm`).
    """
    weights = config["weights"]
    seed = weight_files.random_seed(weights)
    module = build(config["factory"], config.get("kwargs") or {}, seed)
    if seed is None:
        tensors = weight_files.read_tensors(locate(config))
        weight_files.load_tensors(module, tensors, weights, config.get("weights_key"))
    return module


def locate(config: Mapping[str, Any]) -> Path:
    """Return the file that holds the weights of an entry of `models:`, downloading it if need
    be."""
    weights, sha256 = config["weights"], config.get("sha256") or ""
    path = paths.weights_file(weights)
    if path is None and weight_files.is_name(weights):
        url = weight_files.torchvision_weights(config["factory"], weights).url
        digits = re.search(r"-([0-9a-f]{8,})\.", url)
        return weight_files.fetch(url, digits[1] if digits else "", weight_files.cache_folder())
    if path is None:
        return weight_files.fetch(weights, sha256, weight_files.cache_folder())
    if sha256 and path.is_file():
        found = disk.sha256(path)
        if found != sha256.lower():
            raise RfatlasError(f"weights: {path} has sha256 {found}, expected {sha256}")
    return path


def save(
    module: nn.Module,
    traced: graph.Graph,
    path: Path,
    config: Mapping[str, Any],
    input: Mapping[str, Any],
) -> None:
    """Write all tensors of the network, with its graph and what is needed to build it again, to a
    .safetensors file."""
    header = {
        "graph": export.to_json(traced.exported),
        "factory": config["factory"],
        "kwargs": config.get("kwargs") or {},
        "weights": config["weights"],
        "input": dict(input),
        "weights_sha256": weight_files.digest(module),
        "stage_version": versions.stage("model"),
    }
    # Tensors that share memory are written once each under their own name.
    tensors = dict(module.state_dict())
    own = {**traced.exported.tensors}
    tensors |= {f"{_GRAPH}{name}": own[name] for name in own.keys() - tensors.keys()}
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    metadata = {"rfatlas": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    try:
        with disk.whole(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        if disk.is_full(error):
            size = sum(tensor.nbytes for tensor in tensors.values())
            raise disk.no_room(path, size) from error
        raise


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
    """Return the network that `save` wrote, on `device`, in channels-last memory, and its graph.

    Raises RfatlasError if the file is damaged or its tensors are not those that were written.
    """
    header = read_header(path)
    module = build(header["factory"], header["kwargs"])
    tensors = load_file(path)
    own = {name: tensors.pop(name).to(device) for name in [*tensors] if name.startswith(_GRAPH)}
    weight_files.load_tensors(module, tensors, str(path))
    if weight_files.digest(module) != header["weights_sha256"]:
        raise RfatlasError(
            f"{path}: its tensors do not have the digest in its header; delete it and rerun"
        )
    device = torch.device(device)
    module = devices.channels_last(module.requires_grad_(False), device)
    tensors = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    tensors |= {name.removeprefix(_GRAPH): tensor for name, tensor in own.items()}
    traced = graph.Graph(export.from_json(header.pop("graph"), tensors, device))
    return LoadedModel(module, traced, header, header["weights_sha256"], device)


# ---- asked by the workflow before the DAG is built


def _describe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    # What lies on a URL is checked by the job that downloads it; everything else right now.
    local = paths.weights_file(config["weights"]) is not None
    module = make(config) if local else build(config["factory"], config.get("kwargs") or {}, 0)
    input = resolve_input(config, module)
    try:
        description = describe(module, trace(module, input), input)
    except RfatlasError:
        raise
    except Exception as error:
        raise RfatlasError(
            f"factory: {config['factory']} builds a network that fails on an input of 3 x "
            f"{input['crop']} x {input['crop']}: {factories.reason(error)}"
        ) from error
    files = map(Path, factories.imported())
    return description | {"imports": {str(file): disk.sha256(file) for file in files}}


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

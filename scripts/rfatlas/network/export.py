"""A network as ATen operations: exported by torch, made free of side effects, and kept as JSON.

Export (`torch.export`, not strict) sees through modules, functions, hooks and parametrizations, and
its graph holds for any number of images. Jobs do not export again: the stage `model` keeps the
graph beside the weights.
"""

import logging
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from rfatlas.errors import RfatlasError, printable
from rfatlas.network import operations
from rfatlas.network.geometry import Field, Geometry

log = logging.getLogger("rfatlas")

# Marks the value that a module gave, while the network is exported.
_library = torch.library.Library("rfatlas", "FRAGMENT")
_library.define("layer(Tensor x, str name) -> Tensor")
_library.impl("layer", lambda x, name: x.clone(), "CompositeExplicitAutograd")


@dataclass(frozen=True)
class Exported:
    """A network's graph.

    Its nodes are a placeholder (the images), tensors by name (get_attr) and ATen functions without
    side effects; `meta` of each holds `shape` (for a batch of two; "size" for a number that hangs
    on the batch, None for several tensors), `field` (see `operations.field`) and `module`, the
    module that called it. `tensors` are what get_attr nodes mean; those with a name that begins
    with @ were computed from the others. `layers` maps modules to the nodes of their values, in
    order of execution; `output` is the network's, None where it gives several.
    """

    graph: fx.Graph
    tensors: dict[str, torch.Tensor]
    layers: dict[str, fx.Node]
    output: fx.Node | None


def export(module: nn.Module, example: torch.Tensor) -> Exported:
    """Return the graph of `module` in evaluation mode, for images of the size of `example` (N, 3,
    H, W).

    The module's in-place operations are switched off. Raises RfatlasError where torch cannot export
    it for any number of images.
    """
    module = module.eval().requires_grad_(False)
    for child in module.modules():
        if getattr(child, "inplace", False):
            child.inplace = False
    images = torch.zeros(2, *example.shape[1:], dtype=example.dtype, device=example.device)
    program = _program(module, images)
    if any(_writes_into_a_view(node) for node in program.graph.nodes):
        program = program.run_decompositions({})
    found = _Conversion(program, module).exported()
    _fold_constants(found)
    _free_sizes(found)
    for node in found.graph.nodes:
        node.meta["field"] = operations.field(node, found.tensors)
    _mark_fixed(found)
    # It was there so that nothing was dropped; it must not count as a reader of values.
    found.graph.erase_node(next(reversed(found.graph.nodes)))
    return found


def _program(module: nn.Module, images: torch.Tensor) -> Any:
    def mark(name: str) -> Any:
        def hook(child: nn.Module, args: Any, value: Any) -> Any:
            return torch.ops.rfatlas.layer(value, name) if isinstance(value, torch.Tensor) else None

        return hook

    handles = [
        child.register_forward_hook(mark(name)) for name, child in module.named_modules() if name
    ]
    sizes = ({0: torch.export.Dim.AUTO},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(module, (images,), strict=False, dynamic_shapes=sizes)
        except Exception as error:
            if type(error).__name__ not in ("GuardOnDataDependentSymNode", "UserError"):
                raise _refused(module, images, error) from error
            log.warning(
                "%s chooses by the values in an image (%s): what it does for one image is taken "
                "to be what it does for all",
                type(module).__name__,
                _first_line(error),
            )
            return _by_values(module, images, sizes)
        finally:
            for handle in handles:
                handle.remove()


def _first_line(error: Exception) -> str:
    """Return what is wrong; what follows is advice for those who can change the network."""
    return printable(str(error).strip().split("\n")[0], 200)


def _refused(module: nn.Module, images: torch.Tensor, error: Exception) -> RfatlasError:
    size = " x ".join(map(str, images.shape[1:]))
    return RfatlasError(
        f"{type(module).__name__} cannot be exported for images of {size}: "
        f"{type(error).__name__}: {_first_line(error)}"
    )


def _by_values(module: nn.Module, images: torch.Tensor, sizes: tuple) -> Any:
    """Export along the way that an image of noise takes."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    answers = _Answers()
    try:
        with answers:
            module(noise.to(images))
        with answers.again(module):
            return torch.export.export(module, (images,), strict=False, dynamic_shapes=sizes)
    except Exception as error:
        raise _refused(module, images, error) from error


class _Answers(TorchFunctionMode):
    """Keeps every number that is read off a tensor, to give the same ones while exporting."""

    READ = tuple(
        getattr(torch.Tensor, name)
        for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist")
    )

    def __init__(self):
        super().__init__()
        self._given: list[Any] = []
        self._left: Iterator[Any] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in self.READ:
            return func(*args, **(kwargs or {}))
        if self._left is not None:
            return next(self._left)
        self._given.append(func(*args, **(kwargs or {})))
        return self._given[-1]

    @contextmanager
    def again(self, module: nn.Module) -> Iterator[None]:
        def begin(*_: Any) -> None:
            self._left = iter(self._given)

        handle = module.register_forward_pre_hook(begin)
        try:
            with self:
                yield
        finally:
            handle.remove()


# ---- no side effects


def _plain(node: fx.Node) -> Any:
    """Return the operation that does the same without changing its first argument, or None."""
    packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
    if not packet.endswith("_") or packet.startswith("__"):
        return None
    return getattr(getattr(torch.ops.aten, packet[:-1], None), overload, None)


def _is_view(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None) if isinstance(node, fx.Node) else None
    return schema is not None and any(
        one.alias_info is not None and not one.alias_info.is_write for one in schema.returns
    )


def _writes_into_a_view(node: fx.Node) -> bool:
    """Return whether a node changes a tensor that shares its memory with others, or in a way for
    which there is no plain operation."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    if operations.name(node).rstrip("_") in operations.DROPPED:
        return False
    base = node.args[0]
    return _plain(node) is None or _is_view(base) or any(map(_is_view, base.users))


class _Conversion:
    """The exported program as a graph of its own: parameters by name, without marks and without
    operations in place."""

    def __init__(self, program: Any, module: nn.Module):
        self._program = program
        self._graph = fx.Graph()
        self._layers: dict[str, fx.Node] = {}
        self._values: dict[fx.Node, fx.Node] = {}
        signature = program.graph_signature
        self._names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **{
                key: f"@{name}" for key, name in signature.inputs_to_lifted_tensor_constants.items()
            },
        }
        own = dict(module.named_parameters(remove_duplicate=False))
        own |= dict(module.named_buffers(remove_duplicate=False))
        constants = {f"@{name}": value for name, value in program.constants.items()}
        self._tensors = {name: (constants | own)[name] for name in self._names.values()}

    def exported(self) -> Exported:
        outputs = []
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._input(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                wanted = set(self._program.graph_signature.user_outputs)
                outputs = [
                    self._values[value]
                    for value in node.args[0]
                    if isinstance(value, fx.Node) and value.name in wanted
                ]
        output = outputs[0] if len(outputs) == 1 else None
        self._graph.output((output, list(self._layers.values())))
        drop_unused(self._graph)
        order = {node: place for place, node in enumerate(self._graph.nodes)}
        layers = dict(sorted(self._layers.items(), key=lambda item: order[item[1]]))
        return Exported(self._graph, self._tensors, layers, output)

    def _input(self, node: fx.Node) -> fx.Node:
        if node.name in self._names:
            new = self._graph.create_node("get_attr", self._names[node.name])
        else:
            if not isinstance(node.meta["val"].shape[0], torch.SymInt):
                raise RfatlasError(
                    "the network works for one number of images only; its forward must not make a "
                    "number of the batch's size (int(x.size(0)))"
                )
            new = self._graph.placeholder(node.name)
        return self._describe(new, node)

    def _call(self, node: fx.Node) -> None:
        first = self._values.get(node.args[0]) if node.args else None
        kind = operations.name(node)
        if node.target is torch.ops.rfatlas.layer.default:
            self._layers.pop(node.args[1], None)
            self._layers[node.args[1]] = first
            self._values[node] = first
            return
        dropped = kind.rstrip("_") in operations.DROPPED
        if dropped and not operations.arguments(node).get("train"):
            self._values[node] = first
            return
        if node.target is torch.ops.aten.sym_size.int and first.op == "get_attr":
            raise RfatlasError("the size of a weight depends on the number of images")
        if kind == "getitem" and operations.name(first) == "batch_norm":
            self._values[node] = first
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda old: self._values[old])
        mutable = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        target = _plain(node) if mutable else node.target
        if target is torch.ops.aten.view.default:
            # The values lie in channels-last memory, which a view may not fit.
            target = torch.ops.aten.reshape.default
        if kind == "_native_batch_norm_legit_no_training":
            # What batch norm becomes where the program had to be made functional.
            target, args = torch.ops.aten.batch_norm.default, (*args[:5], False, *args[5:], True)
        new = self._graph.create_node("call_function", target, args, kwargs)
        self._describe(new, node)
        if operations.is_identity_pooling(new):
            self._graph.erase_node(new)
            new = first
        self._values[node] = new
        if mutable:
            for old, value in self._values.items():
                if value is first:
                    self._values[old] = new

    def _describe(self, new: fx.Node, node: fx.Node) -> fx.Node:
        value = node.meta.get("val")
        new.meta = {"shape": None}
        if operations.name(new) == "batch_norm" and not isinstance(value, torch.Tensor):
            value = value[0]
        if isinstance(value, torch.Tensor):
            new.meta["shape"] = tuple(map(_hint, value.shape))
        elif not isinstance(value, (list, tuple)) and value is not None:
            new.meta |= {"shape": "size", "value": _hint(value)}
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        new.meta["module"] = stack[-1][0] if stack else ""
        return new


def _hint(size: Any) -> Any:
    """Return a size for a batch of two."""
    found = size if not isinstance(size, (torch.SymInt, torch.SymBool)) else size.node.hint
    return -1 if found is None else found


def drop_unused(graph: fx.Graph) -> None:
    """Remove what nothing reads; fx's own way keeps operations that may be random, such as
    attention, and all that they read."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _fold_constants(found: Exported) -> None:
    """Compute once what does not depend on the image, such as a weight of a parametrization."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in list(found.graph.nodes):
            if node.op == "get_attr":
                values[node] = found.tensors[node.target]
            elif node.op == "call_function" and all(p in values for p in node.all_input_nodes):
                args, kwargs = operations.concrete((node.args, node.kwargs), {}, values)
                values[node] = node.target(*args, **kwargs)
                if not isinstance(values[node], torch.Tensor):
                    continue
                with found.graph.inserting_before(node):
                    constant = found.graph.create_node("get_attr", f"@{node.name}")
                constant.meta = dict(node.meta)
                found.tensors[constant.target] = values[constant] = values[node]
                node.replace_all_uses_with(constant)
    drop_unused(found.graph)
    alive = set(found.graph.nodes)
    used = {node.target for node in alive if node.op == "get_attr"}
    for name in set(found.tensors) - used:
        del found.tensors[name]
    for layer in [layer for layer, node in found.layers.items() if node not in alive]:
        del found.layers[layer]


# ---- free sizes


def _free_sizes(found: Exported) -> None:
    """Have a reshape that keeps height and width as they are take them from its input."""
    size = torch.ops.aten.sym_size.int
    for node in list(found.graph.nodes):
        if operations.name(node) not in ("view", "reshape", "_unsafe_view"):
            continue
        inner, own = operations.shape(node.args[0]), operations.shape(node)
        axes = operations.reshaped(inner, own, (len(inner) - 2, len(inner) - 1))
        if axes is None or len(inner) < 4:
            continue
        sizes = list(node.args[1])
        with found.graph.inserting_before(node):
            for axis, back in zip(axes, (-2, -1), strict=True):
                if isinstance(sizes[axis], int) and sizes[axis] > 0:
                    sizes[axis] = found.graph.call_function(size, (node.args[0], back))
                    sizes[axis].meta = {"shape": "size", "value": own[axis], "module": ""}
        node.args = (node.args[0], sizes, *node.args[2:])


def _mark_fixed(found: Exported) -> None:
    """Find the values that cannot be computed for images of another size, by trying, without
    numbers."""
    values: dict[fx.Node, Any] = {}
    for node in found.graph.nodes:
        if node.op == "placeholder":
            n, channels, height, width = node.meta["shape"]
            values[node] = torch.empty(n, channels, 2 * height, 2 * width, device="meta")
        elif node.op == "get_attr":
            tensor = found.tensors[node.target]
            # The images' type, so that operations find what they expect.
            values[node] = torch.empty_like(tensor, device="meta").to(
                torch.float32 if tensor.is_floating_point() else tensor.dtype
            )
        elif node.op == "call_function":
            try:
                args, kwargs = operations.concrete((node.args, node.kwargs), {}, values)
                if kwargs.get("device") is not None:
                    kwargs = {**kwargs, "device": "meta"}
                values[node] = node.target(*args, **kwargs)
            except Exception:
                field = node.meta["field"]
                if field is not None and field.local is not None:
                    node.meta["field"] = replace(field, fixed=True)


# ---- as JSON


def to_json(found: Exported) -> dict[str, Any]:
    """Return the graph, without its tensors, JSON-ready."""

    def encode(arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return {"node": arg.name}
        if isinstance(arg, (list, tuple)):
            return [encode(one) for one in arg]
        if isinstance(arg, torch.device):
            return {"device": arg.type}
        if isinstance(arg, (torch.dtype, torch.memory_format, torch.layout)):
            return {"torch": str(arg).removeprefix("torch.")}
        if arg is None or isinstance(arg, (bool, int, str)):
            return arg
        return arg if math.isfinite(arg) else {"float": str(arg)}

    rows = []
    for node in found.graph.nodes:
        target = node.target
        if node.op == "call_function":
            own = isinstance(target, torch._ops.OpOverload)
            target = str(target) if own else f"{target.__module__}.{target.__name__}"
        field = node.meta["field"]
        rows.append(
            [
                node.op,
                node.name,
                target,
                encode(node.args),
                {key: encode(value) for key, value in node.kwargs.items()},
                node.meta.get("value", node.meta["shape"]),
                node.meta["module"],
                asdict(field) if field is not None else None,
            ]
        )
    return {
        "nodes": rows,
        "layers": {layer: node.name for layer, node in found.layers.items()},
        "output": found.output.name if found.output is not None else None,
    }


def from_json(
    kept: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device
) -> Exported:
    """Return the graph that `to_json` gave, for tensors that lie on `device`."""
    graph, nodes = fx.Graph(), {}

    def decode(arg: Any) -> Any:
        if isinstance(arg, list):
            return [decode(one) for one in arg]
        if not isinstance(arg, dict):
            return arg
        ((kind, value),) = arg.items()
        if kind == "node":
            return nodes[value]
        if kind == "device":
            return device
        return float(value) if kind == "float" else getattr(torch, value)

    for op, name, target, args, kwargs, shape, module, field in kept["nodes"]:
        if op == "call_function":
            target = _operation(target)
        node = graph.create_node(
            op, target, tuple(decode(args)), {k: decode(v) for k, v in kwargs.items()}, name
        )
        node.meta = {"module": module, "field": None if field is None else _field(field)}
        if isinstance(shape, int):
            node.meta |= {"shape": "size", "value": shape}
        else:
            node.meta["shape"] = None if shape is None else tuple(shape)
        nodes[name] = node
    layers = {layer: nodes[name] for layer, name in kept["layers"].items()}
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    return Exported(
        graph,
        {name: tensors[name] for name in used},
        layers,
        None if kept["output"] is None else nodes[kept["output"]],
    )


def _operation(name: str) -> Any:
    space, _, rest = name.partition(".")
    if space in ("operator", "_operator"):
        return getattr(operator, rest)
    if space in ("torch", "math"):
        return getattr({"torch": torch, "math": math}[space], rest)
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, space), packet), overload)


def _field(kept: Mapping[str, Any]) -> Field:
    local = kept["local"]
    return Field(
        None if kept["axes"] is None else tuple(kept["axes"]),
        None if local is None else Geometry(**{key: tuple(value) for key, value in local.items()}),
        kept["whole"],
        kept["fixed"],
        tuple(kept["probed"]),
    )

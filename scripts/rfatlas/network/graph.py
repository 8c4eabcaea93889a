"""Cutting a network at a layer, and the receptive field of a layer, both read off the torch.fx
graph.

A *layer* is the output of a named module. `Graph` traces the network once and then gives extractors
(many layers in one forward pass), prefixes (stop at a layer), splits (prefix and suffix, also
inside a residual block where several tensors cross) and the receptive-field geometry. A network
that torch.fx cannot trace gets the same methods through forward hooks (`HookedGraph`): slower,
since nothing is cut away, and every receptive field is taken to be the whole image.
"""

import logging
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rfatlas.errors import RfatlasError

log = logging.getLogger("rfatlas")

# Keys of the extractor's answer that are no layers; "@" cannot occur in a module's name.
LOGITS = "@logits"
FEATURES = "@features"


@dataclass(frozen=True)
class Geometry:
    """Receptive field of a layer, per axis (y, x), in input pixels.

    Unit (i, j) can be changed by the pixels `lo[0] + i * stride[0]` to `hi[0] + i * stride[0]`
    (both included) and likewise in x, as far as they lie in the image.
    """

    stride: tuple[int, int]
    lo: tuple[int, int]
    hi: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the box."""
        return self.hi[0] - self.lo[0] + 1, self.hi[1] - self.lo[1] + 1

    @property
    def start(self) -> tuple[float, float]:
        """Centre of unit (0, 0)'s box; the centre of the first pixel is 0.5."""
        return (self.lo[0] + self.hi[0] + 1) / 2, (self.lo[1] + self.hi[1] + 1) / 2

    def box(self, y: int, x: int) -> tuple[int, int, int, int]:
        """Return (top, left, bottom, right) of unit (y, x), bottom and right exclusive, not clipped
        to the image."""
        top, left = self.lo[0] + y * self.stride[0], self.lo[1] + x * self.stride[1]
        return top, left, top + self.size[0], left + self.size[1]

    def windowed(self, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple) -> "Geometry":
        """Return the geometry after a convolution or pooling; `padding` is that of the top and left
        side."""
        return Geometry(
            stride=tuple(self.stride[a] * stride[a] for a in (0, 1)),
            lo=tuple(self.lo[a] - padding[a] * self.stride[a] for a in (0, 1)),
            hi=tuple(
                self.hi[a] + (dilation[a] * (kernel[a] - 1) - padding[a]) * self.stride[a]
                for a in (0, 1)
            ),
        )

    def union(self, other: "Geometry") -> "Geometry":
        """Return the geometry of a unit that sees both boxes; both must have the same stride."""
        return Geometry(
            stride=self.stride,
            lo=tuple(map(min, self.lo, other.lo)),
            hi=tuple(map(max, self.hi, other.hi)),
        )


class NoPath(RfatlasError):
    """What a layer lacks for what was asked of it, in words that fit a table's cell."""


@dataclass(frozen=True)
class LinearPath:
    """The linear network from the input to a layer along its skip connections.

    `steps` holds convolutions, batch norms, average poolings, paddings and slices only; `sums`
    counts the skip connections taken.
    """

    steps: nn.Sequential
    sums: int


class _Whole:
    """A unit that sees the whole image: after global pooling, or after an operation not known to be
    local."""


_WHOLE = _Whole()

_POINTWISE_MODULES = (
    nn.BatchNorm2d,
    nn.Identity,
    nn.LocalResponseNorm,
    nn.Softmax2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.LogSigmoid,
    nn.Threshold,
)
_POINTWISE_FUNCTIONS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow,
    torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.abs, torch.square, torch.sqrt,
    torch.maximum, torch.minimum, torch.clamp, torch.exp, torch.sigmoid, torch.tanh, torch.relu,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, F.dropout, F.dropout2d,
}  # fmt: skip
_POINTWISE_METHODS = {
    "add", "sub", "mul", "div", "neg", "abs", "relu", "sigmoid", "tanh", "clamp", "contiguous",
    "clone", "detach", "float", "to", "type", "half", "double", "square", "sqrt", "exp",
}  # fmt: skip
# The derivative of these is taken as 1 along a linear path: activation functions that are about the
# identity where they pass anything, and what does nothing when a network is not being trained.
_IDENTITY_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.ReLU,
    nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish,
)  # fmt: skip
_IDENTITY_FUNCTIONS = {
    torch.relu, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardswish,
    F.dropout, F.dropout2d,
}  # fmt: skip
_IDENTITY_METHODS = {"relu", "contiguous", "clone", "detach", "float", "to", "type"}
PADDING_MODULES = (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)
_RELU_MODULES = (nn.ReLU, nn.ReLU6)
_RELU_FUNCTIONS = {torch.relu, F.relu, F.relu6}
# Operations whose value is never negative and zero where their inputs are.
_KEEPS_RECTIFIED_MODULES = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.Flatten,
)  # fmt: skip
_KEEPS_RECTIFIED_FUNCTIONS = {
    operator.add, torch.add, torch.cat, torch.flatten, F.max_pool2d, F.avg_pool2d, F.dropout,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d,
}  # fmt: skip
_KEEPS_RECTIFIED_METHODS = {"add", "contiguous", "clone", "detach", "flatten", "view", "reshape"}
_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    F.relu_: F.relu,
}


class _NamingTracer(fx.Tracer):
    """Traces the network and remembers which node holds the output of which module."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, str] = {}

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            # A module called twice (a block's shared ReLU) is named after its last call.
            self.outputs[self.path_of_module(m)] = result.node.name
        return result


def trace(module: nn.Module, example: torch.Tensor) -> "Graph | HookedGraph":
    """Return the graph of `module` in evaluation mode; falls back to hooks, with a warning, if
    torch.fx cannot trace.

    `example` is one input batch (N, 3, H, W); it fixes the input size. The module's in-place
    operations are switched off, so that a layer's value survives the next operation.
    """
    module = module.eval().requires_grad_(False)
    for child in module.modules():
        if getattr(child, "inplace", False):
            child.inplace = False
    tracer = _NamingTracer()
    try:
        graph = tracer.trace(module)
        traced = fx.GraphModule(module, graph)
        _make_out_of_place(traced)
        ShapeProp(traced).propagate(example)
    except Exception as error:
        log.warning(
            "%s cannot be traced by torch.fx (%s); falling back to hooks: slower, and every "
            "receptive field counts as the whole image",
            type(module).__name__,
            str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        )
        return HookedGraph(module, example)
    return Graph(traced, tracer.outputs)


def _make_out_of_place(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
            if node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_method" and node.target.endswith("_"):
            plain = node.target.rstrip("_")
            if not node.target.startswith("__") and hasattr(torch.Tensor, plain):
                node.target = plain
    traced.recompile()


class Graph:
    """A traced network (see `trace`)."""

    traceable = True

    def __init__(self, traced: fx.GraphModule, outputs: dict[str, str]):
        self._traced = traced
        self._modules = dict(traced.named_modules())
        by_name = {node.name: node for node in traced.graph.nodes}
        self._nodes = {
            layer: by_name[name]
            for layer, name in outputs.items()
            if layer and _shape(by_name[name]) is not None
        }
        self._output = next(node for node in traced.graph.nodes if node.op == "output").args[0]
        self._geometry = self._propagate_geometry()
        self._depth = self._count_convolutions()

    def layers(self) -> list[str]:
        """Return the names of all modules whose output is a tensor, in order of execution."""
        order = {node: i for i, node in enumerate(self._traced.graph.nodes)}
        return sorted(self._nodes, key=lambda layer: order[self._nodes[layer]])

    def node(self, layer: str) -> fx.Node:
        """Return the node that holds the layer's value; raises RfatlasError for an unknown
        layer."""
        if layer not in self._nodes:
            raise RfatlasError(f"layer {layer!r} is no module of this network with a tensor output")
        return self._nodes[layer]

    def shape(self, layer: str) -> tuple[int, int, int]:
        """Return (channels, height, width) of a layer; height = width = 1 behind global pooling."""
        return _channels_height_width(layer, _shape(self.node(layer)))

    def classes(self) -> int | None:
        """Return the number of logits, or None if the network's output is no (N, classes)
        tensor."""
        shape = _shape(self._output) if isinstance(self._output, fx.Node) else None
        return shape[1] if shape is not None and len(shape) == 2 else None

    # ---- cutting

    def extractor(self, layers: Iterable[str], output: bool = True) -> nn.Module:
        """Return a module x (N, 3, H, W) -> dict of layer name -> tensor, all from one forward
        pass.

        With `output` the dict also holds LOGITS, and FEATURES (the input of the last linear layer),
        where the network has them; without, the pass stops behind the last layer asked for.
        """
        wanted = {layer: self.node(layer) for layer in layers}
        return self._cut(wanted | (self._outputs() if output else {}), self._traced.graph)

    def prefix(self, layer: str) -> nn.Module:
        """Return a module x (N, 3, H, W) -> the layer's value, which computes nothing behind the
        layer."""
        return self._cut(self.node(layer), self._traced.graph)

    def prefix_and_unrectified(self, layer: str) -> nn.Module:
        """Return a module x (N, 3, H, W) -> (the layer's value, the same with the layer's last ReLU
        left out).

        The ReLU is looked for upwards from the layer, through pooling and whatever else keeps
        values rectified and has one input; where there is none the two are equal.
        """
        graph, values = fx.Graph(), {}
        graph.graph_copy(self._traced.graph, values)
        node = self.node(layer)
        behind = []
        while self._rectified(node) and not self._is_relu(node):
            behind.append(node)
            parents = [parent for parent in node.all_input_nodes if _shape(parent) is not None]
            if len(parents) != 1:
                break
            node = parents[0]
        value = unrectified = values[self.node(layer)]
        if self._is_relu(node):
            replaced = {node: values[node.all_input_nodes[0]]}
            for later in reversed(behind):
                replaced[later] = graph.node_copy(
                    later, lambda old: replaced.get(old, values.get(old))
                )
            unrectified = replaced[self.node(layer)]
        graph.output((value, unrectified))
        return _fold_batch_norm(fx.GraphModule(self._traced, graph))

    def split(self, layer: str) -> tuple[nn.Module, nn.Module]:
        """Return (prefix, suffix): prefix(x) -> (layer's value, *crossing tensors), suffix(*those)
        -> network output.

        The crossing tensors are the values beside the layer that the rest of the network still
        needs, such as a block's skip connection when the layer lies inside the block. They are
        computed from the input alone, so a changed layer value reaches the output through the
        suffix exactly as it would in the whole network.
        """
        start, behind, crossing = self._crossing(layer)
        prefix = self._cut((start, *crossing), self._traced.graph)
        graph, values = fx.Graph(), {}
        for i, node in enumerate((start, *crossing)):
            values[node] = graph.placeholder(f"value_{i}")
            values[node].meta = dict(node.meta)
        for node in self._traced.graph.nodes:
            if node.op == "get_attr" or (node in behind and node is not start):
                values[node] = graph.node_copy(node, lambda old: values[old])
        return prefix, _fold_batch_norm(fx.GraphModule(self._traced, graph))

    def cuts(self, layers: Iterable[str]) -> nn.Module:
        """Return a module x (N, 3, H, W) -> dict of layer name -> (layer's value, *crossing
        tensors), as the layer's suffix takes them (see `split`), all from one forward pass.

        The dict also holds LOGITS and FEATURES, where the network has them.
        """
        wanted: dict[str, Any] = {}
        for layer in layers:
            start, _, crossing = self._crossing(layer)
            wanted[layer] = (start, *crossing)
        return self._cut(wanted | self._outputs(), self._traced.graph)

    def _crossing(self, layer: str) -> tuple[fx.Node, set[fx.Node], list[fx.Node]]:
        """Return the layer's node, all nodes that it can change, and the others that these read."""
        start = self.node(layer)
        behind = {start}
        for node in self._traced.graph.nodes:
            if any(parent in behind for parent in node.all_input_nodes):
                behind.add(node)
        crossing = []
        for node in self._traced.graph.nodes:
            if node in behind and node is not start:
                for parent in node.all_input_nodes:
                    if parent not in behind and parent.op != "get_attr" and parent not in crossing:
                        crossing.append(parent)
        return start, behind, crossing

    def _outputs(self) -> dict[str, fx.Node]:
        """Return the nodes of LOGITS and FEATURES, as far as the network has them."""
        if self.classes() is None:
            return {}
        features = self._features()
        return {LOGITS: self._output} | ({} if features is None else {FEATURES: features})

    def split_block(self, layer: str) -> nn.Module:
        """Return a module x (N, 3, H, W) -> (the layer's value, the sum before its last pointwise
        operations, and the two terms of the sum: skip connection, residual branch).

        The skip connection is the term with fewer convolutions behind it. Raises NoPath where no
        residual block ends at the layer.
        """
        node = self.node(layer)
        while not self._is_sum(node):
            parents = self._tensor_parents(node)
            if len(parents) != 1 or not self._is_spatially_pointwise(node):
                raise NoPath("no residual block ends here")
            node = parents[0]
        return self._cut((self.node(layer), node, *self._terms(node)), self._traced.graph)

    def skipless(self, layer: str) -> bool:
        """Return whether the layer's module is a block of convolutions without any sum."""
        inside = [
            node
            for node in self._traced.graph.nodes
            if layer in node.meta.get("nn_module_stack", {})
        ]
        convolutions = sum(self._is_module(node, nn.Conv2d) for node in inside)
        return convolutions >= 2 and not any(self._is_sum(node) for node in inside)

    def linear_path(self, layer: str) -> LinearPath:
        """Return the linear network from the input to a layer that is left when, at every sum, only
        the skip connection is kept (the term with fewer convolutions behind it).

        ReLU and other activation functions are left out (their derivative is taken as 1), and max
        pooling becomes average pooling. Raises NoPath where an operation on the way is not linear,
        joins several tensors, or where both terms of a sum have as many convolutions.
        """
        steps: list[nn.Module] = []
        node, sums = self.node(layer), 0
        while node.op != "placeholder":
            parents = self._tensor_parents(node)
            if self._is_sum(node):
                node, sums = self._terms(node)[0], sums + 1
                continue
            if len(parents) != 1:
                raise NoPath(f"the operation {node.name} joins {len(parents)} tensors")
            if not self._is_identity(node):
                steps.append(self._linear_step(node))
            node = parents[0]
        return LinearPath(nn.Sequential(*reversed(steps)), sums)

    def _tensor_parents(self, node: fx.Node) -> list[fx.Node]:
        return [parent for parent in node.all_input_nodes if _shape(parent) is not None]

    def _is_sum(self, node: fx.Node) -> bool:
        added = node.target in (operator.add, torch.add) or (
            node.op == "call_method" and node.target == "add"
        )
        return added and not node.kwargs and len(self._tensor_parents(node)) == 2

    def _terms(self, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        """Return the terms of a sum, the one with fewer convolutions behind it first; raises NoPath
        where neither has fewer."""
        first, second = sorted(self._tensor_parents(node), key=lambda parent: self._depth[parent])
        if self._depth[first] == self._depth[second]:
            raise NoPath(f"both terms of the sum {node.name} are equally deep")
        return first, second

    def _is_identity(self, node: fx.Node) -> bool:
        return (
            self._is_module(node, _IDENTITY_MODULES)
            or (node.op == "call_function" and node.target in _IDENTITY_FUNCTIONS)
            or (node.op == "call_method" and node.target in _IDENTITY_METHODS)
        )

    def _linear_step(self, node: fx.Node) -> nn.Module:
        linear = (nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, *PADDING_MODULES)
        if self._is_module(node, linear):
            return self._modules[node.target]
        if self._is_module(node, nn.MaxPool2d) or node.target in (F.max_pool2d, torch.max_pool2d):
            kernel, stride, padding, dilation = self._window(node)
            if dilation == (1, 1):
                return nn.AvgPool2d(kernel, stride, padding, count_include_pad=False)
        if node.target is F.avg_pool2d:
            return nn.AvgPool2d(*self._window(node)[:3])
        if node.target is F.pad:
            given = dict(zip(("pad", "mode"), node.args[1:], strict=False)) | node.kwargs
            return Pad(tuple(given["pad"]), given.get("mode", "constant"))
        if node.target is operator.getitem and self._window(node) is not None:
            return Slice(node.args[1])
        raise NoPath(f"the operation {node.name} is not linear")

    def _cut(self, wanted: Any, source: fx.Graph) -> nn.Module:
        graph, values = fx.Graph(), {}
        graph.graph_copy(source, values)
        graph.output(fx.node.map_arg(wanted, lambda node: values[node]))
        return _fold_batch_norm(fx.GraphModule(self._traced, graph))

    def _features(self) -> fx.Node | None:
        node = self._output
        while isinstance(node, fx.Node) and node.all_input_nodes:
            if self._is_module(node, nn.Linear):
                return node.args[0]
            node = node.all_input_nodes[0]
        return None

    # ---- properties of layers

    def geometry(self, layer: str) -> Geometry | None:
        """Return the receptive field, or None where a unit sees the whole image."""
        geometry = self._geometry.get(self.node(layer))
        return geometry if isinstance(geometry, Geometry) else None

    def rectified(self, layer: str) -> bool:
        """Return whether the layer's values come from a ReLU (also through pooling, sums and
        reshaping)."""
        return self._rectified(self.node(layer))

    def gflops(self, layer: str | None = None) -> float:
        """Return the 10^9 floating-point operations of convolutions and linear layers, per image,
        up to a layer."""
        nodes = self._upstream(self._output if layer is None else self.node(layer))
        return sum(self._flops(node) for node in nodes) / 1e9

    def kept_bytes(self, layer: str) -> float:
        """Return the bytes of all intermediate values up to a layer, per image: what a backward
        pass keeps at most."""
        nodes = self._upstream(self.node(layer))
        return sum(4.0 * math.prod(_shape(node) or (0,)) for node in nodes)

    def filter_norms(self, layer: str) -> torch.Tensor | None:
        """Return the filter norm of every channel (C,), float64, or None where no single filter
        feeds the channel.

        L2 norm of the incoming filter with batch norm folded in: a block's is that of its residual
        branch's last convolution, a pooling's that of the convolution before it.
        """
        norms = self._filter_norms(self.node(layer))
        return norms if norms is not None and len(norms) == self.shape(layer)[0] else None

    def _upstream(self, node: fx.Node) -> set[fx.Node]:
        needed, stack = set(), [node]
        while stack:
            node = stack.pop()
            if isinstance(node, fx.Node) and node not in needed:
                needed.add(node)
                stack.extend(node.all_input_nodes)
        return needed

    def _filter_norms(self, node: fx.Node) -> torch.Tensor | None:
        while isinstance(node, fx.Node) and node.op not in ("placeholder", "get_attr"):
            if self._is_module(node, (nn.Conv2d, nn.Linear)):
                weight = self._modules[node.target].weight.detach().double()
                norms = weight.flatten(1).norm(dim=1)
                users = list(node.users)
                if len(users) == 1 and self._is_module(users[0], nn.BatchNorm2d):
                    norms = norms * batch_norm_scale(self._modules[users[0].target]).abs()
                return norms
            parents = node.all_input_nodes
            if node.target is torch.cat:
                parts = [self._filter_norms(parent) for parent in parents]
                return None if any(part is None for part in parts) else torch.cat(parts)
            node = max(parents, key=lambda parent: self._depth[parent]) if parents else None
        return None

    def _is_module(self, node: fx.Node, kind: type | tuple) -> bool:
        return node.op == "call_module" and isinstance(self._modules[node.target], kind)

    def _flops(self, node: fx.Node) -> float:
        if not self._is_module(node, (nn.Conv2d, nn.Linear)):
            return 0.0
        return _module_flops(self._modules[node.target], _shape(node))

    def _count_convolutions(self) -> dict[fx.Node, int]:
        depth: dict[fx.Node, int] = {}
        for node in self._traced.graph.nodes:
            own = int(self._is_module(node, (nn.Conv2d, nn.Linear)))
            depth[node] = own + max((depth[parent] for parent in node.all_input_nodes), default=0)
        return depth

    def _is_relu(self, node: fx.Node) -> bool:
        if self._is_module(node, _RELU_MODULES) or node.target in _RELU_FUNCTIONS:
            return True
        return node.op == "call_method" and node.target == "relu"

    def _rectified(self, node: fx.Node) -> bool:
        if self._is_relu(node):
            return True
        keeps = (
            self._is_module(node, _KEEPS_RECTIFIED_MODULES)
            or (node.op == "call_function" and node.target in _KEEPS_RECTIFIED_FUNCTIONS)
            or (node.op == "call_method" and node.target in _KEEPS_RECTIFIED_METHODS)
        )
        parents = [parent for parent in node.all_input_nodes if _shape(parent) is not None]
        # A sum with a number (x + 1) has a single tensor parent and is no longer zero where x is.
        added_number = node.target in (operator.add, torch.add, "add") and len(parents) < 2
        return keeps and not added_number and all(self._rectified(parent) for parent in parents)

    def _propagate_geometry(self) -> dict[fx.Node, Geometry | _Whole | None]:
        fields: dict[fx.Node, Geometry | _Whole | None] = {}
        for node in self._traced.graph.nodes:
            if node.op == "placeholder":
                fields[node] = Geometry((1, 1), (0, 0), (0, 0))
            elif node.op == "get_attr" or _shape(node) is None:
                fields[node] = None
            else:
                fields[node] = self._node_geometry(node, fields)
        return fields

    def _node_geometry(self, node: fx.Node, fields: dict) -> Geometry | _Whole | None:
        parents = [fields[parent] for parent in node.all_input_nodes if fields[parent] is not None]
        if not parents:
            return _WHOLE if node.all_input_nodes else None
        if any(parent is _WHOLE for parent in parents):
            return _WHOLE
        first = parents[0]
        window = self._window(node)
        if window is not None:
            return first.windowed(*window)
        if self._is_spatially_pointwise(node):
            result = first
            for other in parents[1:]:
                if other.stride != first.stride:
                    return _WHOLE
                result = result.union(other)
            return result
        return _WHOLE

    def _window(self, node: fx.Node) -> tuple | None:
        """Return (kernel, stride, padding of the top and left, dilation) if the node slides a
        window, else None."""
        if node.op == "call_module":
            module = self._modules[node.target]
            if isinstance(module, nn.Conv2d) and module.padding_mode != "circular":
                padding = module.padding
                if padding == "valid":
                    padding = (0, 0)
                elif padding == "same":
                    padding = tuple(
                        d * (k - 1) // 2
                        for d, k in zip(module.dilation, module.kernel_size, strict=True)
                    )
                return module.kernel_size, module.stride, padding, module.dilation
            if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
                return _pooling_window(
                    module.kernel_size,
                    module.stride,
                    module.padding,
                    getattr(module, "dilation", 1),
                )
            if isinstance(module, PADDING_MODULES):
                left, _, top, _ = module.padding
                return (1, 1), (1, 1), (top, left), (1, 1)
        if node.target in (F.max_pool2d, torch.max_pool2d, F.avg_pool2d):
            return _pooling_window(*_pooling_arguments(node))
        if node.target is F.pad:
            amounts = list(node.args[1] if len(node.args) > 1 else node.kwargs["pad"])
            amounts += [0] * (4 - len(amounts))
            return (1, 1), (1, 1), (amounts[2], amounts[0]), (1, 1)
        if node.target is operator.getitem:
            return _slice_window(node.args[1], _shape(node.args[0]))
        return None

    def _is_spatially_pointwise(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self._modules[node.target]
            if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
                return _shape(node)[2:] == _shape(node.all_input_nodes[0])[2:]
            return isinstance(module, _POINTWISE_MODULES)
        if node.target is torch.cat:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            return dim in (1, -3)
        if node.op == "call_function":
            return node.target in _POINTWISE_FUNCTIONS
        return node.op == "call_method" and node.target in _POINTWISE_METHODS


class HookedGraph:
    """A network that torch.fx cannot trace: the methods of `Graph` through forward hooks."""

    traceable = False

    def __init__(self, module: nn.Module, example: torch.Tensor):
        self._module = module
        self._modules = {name: child for name, child in module.named_modules() if name}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._rectified_layers: set[str] = set()
        self._flops: dict[str, float] = {}
        self._last_linear: str | None = None
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand(example.shape, generator=generator)

        def record(name: str) -> Callable:
            def hook(child: nn.Module, args: tuple, value: Any) -> None:
                if not isinstance(value, torch.Tensor) or value.ndim not in (2, 4):
                    return
                self._shapes.pop(name, None)
                self._shapes[name] = tuple(value.shape)
                if value.min() >= 0 and (value == 0).any():
                    self._rectified_layers.add(name)
                if isinstance(child, (nn.Conv2d, nn.Linear)):
                    self._flops[name] = _module_flops(child, value.shape)
                if isinstance(child, nn.Linear):
                    self._last_linear = name

            return hook

        handles = [
            child.register_forward_hook(record(name)) for name, child in self._modules.items()
        ]
        try:
            with torch.no_grad():
                result = module(probe)
        finally:
            for handle in handles:
                handle.remove()
        matrix = isinstance(result, torch.Tensor) and result.ndim == 2
        self._classes = result.shape[1] if matrix else None

    def layers(self) -> list[str]:
        """Return the names of all modules whose output is a tensor, in order of execution."""
        return list(self._shapes)

    def shape(self, layer: str) -> tuple[int, int, int]:
        """Return (channels, height, width) of a layer."""
        self._check(layer)
        return _channels_height_width(layer, self._shapes[layer])

    def classes(self) -> int | None:
        """Return the number of logits, or None."""
        return self._classes

    def extractor(self, layers: Iterable[str], output: bool = True) -> nn.Module:
        """Return a module x -> dict of layer name -> tensor; the whole network runs."""
        layers = list(layers)
        for layer in layers:
            self._check(layer)
        return _HookedExtractor(
            self._module,
            {layer: self._modules[layer] for layer in layers},
            self._modules[self._last_linear] if output and self._last_linear else None,
            output and self._classes is not None,
        )

    def prefix(self, layer: str) -> nn.Module:
        """Return a module x -> the layer's value; the pass is abandoned behind the layer."""
        self._check(layer)
        return _HookedPrefix(self._module, self._modules[layer], carry_input=False)

    def prefix_and_unrectified(self, layer: str) -> nn.Module:
        """Return a module x -> (the layer's value, the same before the ReLU module whose output the
        layer's value is, or the value again where there is no such module)."""
        self._check(layer)
        relus = [child for child in self._modules.values() if isinstance(child, _RELU_MODULES)]
        return _HookedUnrectified(self._module, self._modules[layer], relus)

    def split(self, layer: str) -> tuple[nn.Module, nn.Module]:
        """Return (prefix, suffix); the input itself crosses, and the suffix runs the whole network
        with the value put in."""
        self._check(layer)
        return (
            _HookedPrefix(self._module, self._modules[layer], carry_input=True),
            _HookedSuffix(self._module, self._modules[layer]),
        )

    def cuts(self, layers: Iterable[str]) -> nn.Module:
        """Return a module x -> dict of layer name -> (layer's value, x), and LOGITS and FEATURES
        where the network has them; the whole network runs."""
        layers = list(layers)
        return _HookedCuts(self.extractor(layers), layers)

    def split_block(self, layer: str) -> nn.Module:
        """Raise NoPath: without a graph, no sum is known."""
        self._check(layer)
        raise NoPath("torch.fx cannot trace the network")

    def skipless(self, layer: str) -> bool:
        """Return False: without a graph, no block is known to have no sum."""
        self._check(layer)
        return False

    def linear_path(self, layer: str) -> LinearPath:
        """Raise NoPath: without a graph, no path is known."""
        self._check(layer)
        raise NoPath("torch.fx cannot trace the network")

    def geometry(self, layer: str) -> None:
        """Return None: without a graph, every unit may see the whole image."""
        self._check(layer)

    def rectified(self, layer: str) -> bool:
        """Return whether the layer's values on a random image are never negative and sometimes
        zero."""
        self._check(layer)
        return layer in self._rectified_layers

    def gflops(self, layer: str | None = None) -> float:
        """Return the 10^9 operations of convolutions and linear layers executed up to a layer (all,
        for None)."""
        total = 0.0
        for name in self._shapes:
            total += self._flops.get(name, 0.0)
            if name == layer:
                break
        return total / 1e9

    def kept_bytes(self, layer: str) -> float:
        """Return the bytes of the recorded values up to a layer, per image."""
        names = list(self._shapes)
        shapes = [self._shapes[name] for name in names[: names.index(layer) + 1]]
        return sum(4.0 * math.prod(shape) for shape in shapes)

    def filter_norms(self, layer: str) -> torch.Tensor | None:
        """Return the filter norms of a convolution or linear layer (no batch norm folded in), else
        None."""
        self._check(layer)
        weight = getattr(self._modules[layer], "weight", None)
        if not isinstance(self._modules[layer], (nn.Conv2d, nn.Linear)):
            return None
        return weight.detach().double().flatten(1).norm(dim=1)

    def _check(self, layer: str) -> None:
        if layer not in self._shapes:
            raise RfatlasError(f"layer {layer!r} is no module of this network with a tensor output")


class Pad(nn.Module):
    """Padding of a tensor's last axes by `amounts`, as F.pad takes them."""

    def __init__(self, amounts: tuple[int, ...], mode: str):
        super().__init__()
        self.amounts, self.mode = amounts, mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, self.amounts, self.mode)


class Slice(nn.Module):
    """Subsampling x[:, :, a::s, b::t]."""

    def __init__(self, index: tuple):
        super().__init__()
        self.index = index

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[self.index]


class _HookedExtractor(nn.Module):
    def __init__(
        self, module: nn.Module, layers: dict, last_linear: nn.Module | None, logits: bool
    ):
        super().__init__()
        self._module, self._layers, self._last_linear, self._logits = (
            module,
            layers,
            last_linear,
            logits,
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        values: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable:
            # A later in-place operation of an untraceable network must not change what was kept.
            return lambda child, args, value: values.__setitem__(name, value.clone())

        handles = [child.register_forward_hook(keep(name)) for name, child in self._layers.items()]
        if self._last_linear is not None:
            handles.append(
                self._last_linear.register_forward_pre_hook(
                    lambda child, args: values.__setitem__(FEATURES, args[0])
                )
            )
        try:
            result = self._module(x)
        finally:
            for handle in handles:
                handle.remove()
        if self._logits:
            values[LOGITS] = result
        return values


class _HookedCuts(nn.Module):
    def __init__(self, extractor: nn.Module, layers: list[str]):
        super().__init__()
        self._extractor, self._layers = extractor, layers

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        values = self._extractor(x)
        return values | {layer: (values[layer], x) for layer in self._layers}


class _Reached(Exception):
    pass


class _HookedPrefix(nn.Module):
    def __init__(self, module: nn.Module, layer: nn.Module, carry_input: bool):
        super().__init__()
        self._module, self._layer, self._carry_input = module, layer, carry_input

    def forward(self, x: torch.Tensor) -> Any:
        reached: list[torch.Tensor] = []

        def stop(child: nn.Module, args: tuple, value: torch.Tensor) -> None:
            reached.append(value)
            raise _Reached

        handle = self._layer.register_forward_hook(stop)
        try:
            self._module(x)
        except _Reached:
            pass
        finally:
            handle.remove()
        return (reached[0], x) if self._carry_input else reached[0]


class _HookedUnrectified(nn.Module):
    def __init__(self, module: nn.Module, layer: nn.Module, relus: list[nn.Module]):
        super().__init__()
        self._prefix, self._relus = _HookedPrefix(module, layer, carry_input=False), relus

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last: list[tuple[torch.Tensor, torch.Tensor]] = []

        def remember(child: nn.Module, args: tuple, value: torch.Tensor) -> None:
            last[:] = [(args[0], value)]

        # Registered before the hook that stops the pass, for a layer that is a ReLU itself.
        handles = [relu.register_forward_hook(remember) for relu in self._relus]
        try:
            value = self._prefix(x)
        finally:
            for handle in handles:
                handle.remove()
        return value, last[0][0] if last and last[0][1] is value else value


class _HookedSuffix(nn.Module):
    def __init__(self, module: nn.Module, layer: nn.Module):
        super().__init__()
        self._module, self._layer = module, layer

    def forward(self, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        handle = self._layer.register_forward_hook(lambda child, args, old: value)
        try:
            return self._module(x)
        finally:
            handle.remove()


def _fold_batch_norm(cut: fx.GraphModule) -> fx.GraphModule:
    """Fold every batch norm into the convolution before it, where nothing else reads the
    convolution's output."""
    cut.graph.eliminate_dead_code()
    modules = dict(cut.named_modules())
    calls: dict[str, int] = {}
    for node in cut.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    for node in list(cut.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        before = node.args[0]
        if (
            before.op == "call_module"
            and type(modules[before.target]) is nn.Conv2d
            and len(before.users) == 1
            and calls[before.target] == 1
            and modules[node.target].running_var is not None
        ):
            parent, _, name = before.target.rpartition(".")
            fused = fuse_conv_bn_eval(modules[before.target], modules[node.target])
            setattr(cut.get_submodule(parent), name, fused.requires_grad_(False))
            node.replace_all_uses_with(before)
            cut.graph.erase_node(node)
    cut.delete_all_unused_submodules()
    cut.recompile()
    return cut


def first_kernels(traced: "Graph | HookedGraph", layer: str) -> torch.Tensor:
    """Return the kernels (C, 3, h, w), float64, of a layer that is one convolution of the image,
    batch norms before and behind it folded in; raises NoPath for any other layer."""
    path = traced.linear_path(layer)
    convolutions = [step for step in path.steps if isinstance(step, nn.Conv2d)]
    plain = all(isinstance(step, (nn.Conv2d, nn.BatchNorm2d)) for step in path.steps)
    if path.sums or len(convolutions) != 1 or convolutions[0].groups != 1 or not plain:
        raise NoPath("the layer is not a single convolution of the image")
    kernels = convolutions[0].weight.detach().cpu().double()
    behind = False
    for step in path.steps:
        if isinstance(step, nn.BatchNorm2d):
            scale = batch_norm_scale(step).detach().cpu().double()
            kernels = kernels * scale.view((-1, 1, 1, 1) if behind else (1, -1, 1, 1))
        behind |= step is convolutions[0]
    return kernels


def batch_norm_scale(norm: nn.BatchNorm2d) -> torch.Tensor:
    """Return the factor (C,), float64, by which a batch norm multiplies each channel."""
    variance = norm.running_var.double()
    gain = norm.weight.double() if norm.affine else torch.ones_like(variance)
    return gain / (variance + norm.eps).sqrt()


def _shape(node: Any) -> tuple[int, ...] | None:
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    shape = getattr(meta, "shape", None)
    return tuple(shape) if shape is not None else None


def _channels_height_width(layer: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) == 4:
        return tuple(shape[1:])
    if len(shape) == 2:
        return shape[1], 1, 1
    raise RfatlasError(f"layer {layer!r} has shape {shape}; a layer must be (N, C, H, W) or (N, C)")


def _module_flops(module: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> float:
    """Return the operations (2 per multiply-add) of one image; `shape` is that of the output."""
    positions = 1
    for extent in shape[2:] if isinstance(module, nn.Conv2d) else shape[1:-1]:
        positions *= extent
    return 2.0 * module.weight.numel() * positions


def _pair(value: int | tuple | list) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _pooling_window(kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple:
    return _pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation)


def _pooling_arguments(node: fx.Node) -> tuple:
    """Return (kernel, stride, padding, dilation) of a functional pooling call."""
    names = ["kernel_size", "stride", "padding"]
    defaults: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1}
    if node.target is not F.avg_pool2d:
        names.append("dilation")
    given = {**defaults, **dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    return given["kernel_size"], given["stride"], given["padding"], given["dilation"]


def _slice_window(index: Any, shape: tuple[int, ...] | None) -> tuple | None:
    """Return the window of the subsampling x[:, :, a::s, b::t]; None for any other indexing."""
    if shape is None or len(shape) != 4 or not isinstance(index, tuple):
        return None
    if not all(isinstance(part, slice) for part in index) or not 3 <= len(index) <= 4:
        return None
    index = index + (slice(None),) * (4 - len(index))
    starts, steps = [], []
    for part, extent in zip(index[2:], shape[2:], strict=True):
        start, stop, step = part.indices(extent)
        if stop != extent:
            return None
        starts.append(-start)
        steps.append(step)
    return (1, 1), tuple(steps), tuple(starts), (1, 1)

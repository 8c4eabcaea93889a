"""Cutting a network at a layer, and what is known of its layers, read off its graph.

A *layer* is the value of a named module; of a module that is called twice, that of the last call.
`Graph` gives extractors (many layers in one forward pass), prefixes (stop at a layer), splits
(prefix and suffix, also inside a residual block where several tensors cross), the receptive fields
and the filter norms of layers.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rfatlas.errors import RfatlasError
from rfatlas.network import export, operations
from rfatlas.network.export import Exported
from rfatlas.network.geometry import Field
from rfatlas.network.operations import arguments, name, parents, shape

# Keys of the extractor's answer that are no layers; "@" cannot occur in a module's name.
LOGITS = "@logits"
FEATURES = "@features"


class NoPath(RfatlasError):
    """What a layer lacks for what was asked of it, in words that fit a table's cell."""


@dataclass(frozen=True)
class LinearPath:
    """The linear network from the input to a layer along its skip connections.

    `steps` are its operations, (name, arguments), tensors among these in place, a convolution that
    averages every channel alike as `blur`; `sums` counts the skip connections taken; `graph` runs
    it, in double precision, to its only layer.
    """

    graph: "Graph"
    steps: list[tuple[str, dict[str, Any]]]
    sums: int


_FILTERS = operations.CONVOLUTIONS | operations.MULTIPLICATIONS
# The derivative of these is taken as 1 along a linear path: activation functions that are about the
# identity where they pass anything, and copies.
_IDENTITIES = operations.COPIES | {
    "relu", "relu6", "hardtanh", "leaky_relu", "prelu", "_prelu_kernel", "rrelu", "elu", "celu",
    "selu", "gelu", "silu", "mish", "hardswish", "clamp_min",
}  # fmt: skip
_LINEAR = {"conv2d", "batch_norm", "avg_pool2d", "slice"} | operations.PADDINGS
# Values in 0..1 that open and close others.
_GATES = {"sigmoid", "hardsigmoid", "softmax", "tanh", "gt", "ge", "lt", "le", "ne"}
_MOVES = (
    operations.RESHAPES
    | operations.TURNS
    | {"getitem", "slice", "slice_scatter", "select", "cat", "stack", "chunk", "split", "copy"}
)
# Operations whose value is never negative and zero where their inputs are.
_KEEPS_RECTIFIED = (
    operations.COPIES
    | operations.RESHAPES
    | operations.POOLINGS
    | operations.ADAPTIVE
    | {"cat", "getitem", "chunk", "split", "slice", "channel_shuffle", "permute"}
    | {"transpose"}
)
# What may lie between a classifier and the network's output, and keeps its classes apart.
_BEHIND_A_HEAD = (
    operations.COPIES
    | operations.RESHAPES
    | operations.ADAPTIVE
    | {"mean", "avg_pool2d", "add", "mul", "div", "relu", "log_softmax", "softmax", "amax"}
)
_LINEAR_BEHIND = operations.COPIES | operations.RESHAPES | operations.ADAPTIVE
_LINEAR_BEHIND |= {"mean", "avg_pool2d"} | operations.MULTIPLICATIONS

# Of float32, on the scale of a network's logits.
_ROUNDING = 1e-4


def trace(module: nn.Module, example: torch.Tensor) -> "Graph":
    """Return the graph of `module` in evaluation mode, for images of the size of `example` (N, 3,
    H, W); raises RfatlasError where torch cannot export it."""
    return Graph(export.export(module, example))


class Graph:
    """A network's graph (see `export.Exported`)."""

    def __init__(self, exported: Exported):
        self.exported = exported
        self._graph, self._tensors = exported.graph, exported.tensors
        self._output = exported.output
        self._nodes = {
            layer: node for layer, node in exported.layers.items() if node.meta["field"] is not None
        }
        weighted = [node for node in self._graph.nodes if name(node) in _FILTERS]
        weighted = [node for node in weighted if self._weight(node) is not None]
        self._blurs = {node for node in weighted if self._is_blur(node)}
        self._filters = {*weighted} - self._blurs
        self._depth: dict[fx.Node, int] = {}
        for node in self._graph.nodes:
            own = int(node in self._filters)
            self._depth[node] = own + max(map(self._depth.get, self._main_parents(node)), default=0)

    def layers(self) -> list[str]:
        """Return the names of all modules whose output is a tensor, in order of execution."""
        return list(self._nodes)

    def node(self, layer: str) -> fx.Node:
        """Return the node that holds the layer's value; raises RfatlasError for an unknown
        layer."""
        if layer not in self._nodes:
            raise RfatlasError(f"layer {layer!r} is no module of this network with a tensor output")
        return self._nodes[layer]

    def is_map(self, layer: str) -> bool:
        """Return whether a layer's value is (N, C, H, W) or (N, C)."""
        extents = len(shape(self.node(layer)))
        return extents == 2 or (extents == 4 and self.field(layer).axes == (2, 3))

    def is_convolution(self, layer: str) -> bool:
        """Return whether a convolution gives the layer's value."""
        return name(self.node(layer)) in operations.CONVOLUTIONS

    def is_pooling(self, layer: str) -> bool:
        """Return whether a pooling gives the layer's value, or a blur."""
        node = self.node(layer)
        return node in self._blurs or name(node) in operations.POOLINGS

    def shape(self, layer: str) -> tuple[int, int, int]:
        """Return (channels, height, width) of a layer; height = width = 1 behind global pooling."""
        found = shape(self.node(layer))
        if not self.is_map(layer):
            raise RfatlasError(
                f"layer {layer!r} has shape {('N', *found[1:])}; a layer must be (N, C, H, W) or "
                "(N, C)"
            )
        return (*found[1:], 1, 1)[:3]

    def classes(self) -> int | None:
        """Return the number of logits, or None if the network has no classifier or its output is
        no (N, classes) tensor."""
        return shape(self._output)[1] if self._heads() else None

    # ---- cutting

    def extractor(self, layers: Iterable[str], output: bool = True) -> nn.Module:
        """Return a module x (N, 3, H, W) -> dict of layer name -> tensor, all from one forward
        pass.

        With `output` the dict also holds LOGITS, and FEATURES (N, D) (the input of the last linear
        layer), where the network has them; without, the pass stops behind the last layer asked for.
        """
        wanted = {layer: self.node(layer) for layer in layers}
        return self._cut(wanted | (self._outputs() if output else {}))

    def prefix(self, layer: str) -> nn.Module:
        """Return a module x (N, 3, H, W) -> the layer's value, which computes nothing behind the
        layer."""
        return self._cut(self.node(layer))

    def prefix_and_unrectified(self, layer: str) -> nn.Module:
        """Return a module x (N, 3, H, W) -> (the layer's value, the same with the layer's last ReLU
        left out).

        The ReLU is looked for upwards from the layer, through pooling and whatever else keeps
        values rectified and has one input; where there is none the two are equal.
        """
        graph, values = fx.Graph(), {}
        graph.graph_copy(self._graph, values)
        node = self.node(layer)
        behind = []
        while self._rectified(node) and self._before_relu(node) is None:
            above = parents(node)
            if len(above) != 1:
                break
            behind.append(node)
            node = above[0]
        value = unrectified = values[self.node(layer)]
        before = self._before_relu(node)
        if before is not None:
            replaced = {node: values[before]}
            for later in reversed(behind):
                replaced[later] = graph.node_copy(
                    later, lambda old: replaced.get(old, values.get(old))
                )
            unrectified = replaced[self.node(layer)]
        graph.output((value, unrectified))
        return self._module(graph)

    def split(self, layer: str) -> tuple[nn.Module, nn.Module]:
        """Return (prefix, suffix): prefix(x) -> (layer's value, *crossing tensors), suffix(*those)
        -> network output.

        The crossing tensors are the values beside the layer that the rest of the network still
        needs, such as a block's skip connection when the layer lies inside the block. They are
        computed from the input alone, so a changed layer value reaches the output through the
        suffix exactly as it would in the whole network.
        """
        start, behind, crossing = self._crossing(layer)
        graph, values = fx.Graph(), {}
        for i, node in enumerate((start, *crossing)):
            values[node] = graph.placeholder(f"value_{i}")
            values[node].meta = dict(node.meta)

        def copied(old: fx.Node) -> fx.Node:
            # What depends on the number of images takes it from the layer's value.
            if old not in values:
                values[old] = (
                    values[start] if old.op == "placeholder" else graph.node_copy(old, copied)
                )
            return values[old]

        for node in self._graph.nodes:
            if node in behind and node is not start:
                values[node] = graph.node_copy(node, copied)
        graph.output(values.get(self._output))
        return self._cut((start, *crossing)), self._module(graph)

    def whole(self) -> nn.Module | None:
        """Return a module x (N, 3, H, W) -> the network's output; None where it gives several."""
        return None if self._output is None else self._cut(self._output)

    def cuts(self, layers: Iterable[str]) -> nn.Module:
        """Return a module x (N, 3, H, W) -> dict of layer name -> (layer's value, *crossing
        tensors), as the layer's suffix takes them (see `split`), all from one forward pass.

        The dict also holds LOGITS and FEATURES, where the network has them.
        """
        wanted: dict[str, Any] = {}
        for layer in layers:
            start, _, crossing = self._crossing(layer)
            wanted[layer] = (start, *crossing)
        return self._cut(wanted | self._outputs())

    def _crossing(self, layer: str) -> tuple[fx.Node, set[fx.Node], list[fx.Node]]:
        """Return the layer's node, all nodes that it can change and that the output needs, and the
        others that these read."""
        start = self.node(layer)
        needed = self._upstream(self._output)
        behind = {start}
        for node in self._graph.nodes:
            if node in needed and any(parent in behind for parent in node.all_input_nodes):
                behind.add(node)
        crossing = []
        for node in self._graph.nodes:
            if node in behind and node is not start:
                for parent in node.all_input_nodes:
                    seen = parent.meta["field"] is not None or parents(parent)
                    if seen and parent.meta["shape"] != "size" and parent not in behind:
                        if parent not in crossing:
                            crossing.append(parent)
        return start, behind, crossing

    def _outputs(self) -> dict[str, fx.Node]:
        """Return the nodes of LOGITS and FEATURES, as far as the network has them."""
        if not self._heads():
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
            above = parents(node)
            own = operations.is_pointwise(node) or name(node) == "batch_norm"
            if len(above) != 1 or not own:
                raise NoPath("no residual block ends here")
            node = above[0]
        return self._cut((self.node(layer), node, *self._terms(node)))

    def skipless(self, layer: str) -> bool:
        """Return whether the layer's module is a block of convolutions without any sum."""
        return self.filters(layer) >= 2 and not any(map(self._is_sum, self._inside(layer)))

    def filters(self, layer: str) -> int:
        """Return how many convolutions and linear layers the layer's module runs."""
        return sum(node in self._filters for node in self._inside(layer))

    def _inside(self, layer: str) -> list[fx.Node]:
        return [n for n in self._graph.nodes if f"{n.meta.get('module')}.".startswith(f"{layer}.")]

    def linear_path(self, layer: str) -> LinearPath:
        """Return the linear network from the input to a layer that is left when, at every sum, only
        the skip connection is kept (the term with fewer convolutions behind it).

        ReLU and other activation functions are left out (their derivative is taken as 1), and max
        pooling becomes average pooling. Raises NoPath where an operation on the way is not linear,
        joins several tensors, or where both terms of a sum have as many convolutions.
        """
        nodes: list[fx.Node] = []
        node, sums = self.node(layer), 0
        while node.op != "placeholder":
            above = parents(node)
            if self._is_sum(node):
                node, sums = self._terms(node)[0], sums + 1
                continue
            if len(above) != 1:
                raise NoPath(f"the operation {name(node)} joins {len(above)} tensors")
            if name(node) not in _IDENTITIES:
                if name(node) not in _LINEAR | operations.POOLINGS:
                    raise NoPath(f"the operation {self._bend(node)} is not linear")
                nodes.append(node)
            node = above[0]
        return self._path(list(reversed(nodes)), sums)

    def _bend(self, node: fx.Node) -> str:
        """Return the name of the operation that a path ends at: where it only moves values, as
        behind a layer norm, of the one that made them unless that one is linear."""
        made = node
        while name(made) in _MOVES and len(parents(made)) == 1:
            made = parents(made)[0]
        linear = name(made) in _LINEAR | _IDENTITIES | operations.POOLINGS
        return name(node if linear or made.op == "placeholder" else made)

    def _path(self, nodes: list[fx.Node], sums: int) -> LinearPath:
        tensors = {key: value.cpu().double() for key, value in self._tensors.items()}
        graph, steps = fx.Graph(), []
        value = graph.placeholder("x")
        value.meta = dict(next(n for n in self._graph.nodes if n.op == "placeholder").meta)
        for node in nodes:
            a = arguments(node)
            image = parents(node)[0]
            if name(node) in ("max_pool2d", "max_pool2d_with_indices"):
                if operations.window(node)[3] != (1, 1):
                    raise NoPath(f"the operation {name(node)} is not linear")
                window = (a["kernel_size"], a["stride"], a["padding"], a["ceil_mode"], False)
                new = graph.call_function(torch.ops.aten.avg_pool2d.default, (value, *window))
            else:
                new = graph.node_copy(
                    node,
                    lambda old, image=image, value=value: (
                        value if old is image else graph.node_copy(old)
                    ),
                )
            new.meta = dict(node.meta)
            step = "blur" if node in self._blurs else name(new)
            steps.append((step, self._resolved(arguments(new))))
            value = new
        graph.output(value)
        for node in graph.nodes:
            node.meta["field"] = operations.field(node, tensors)
        return LinearPath(Graph(Exported(graph, tensors, {"path": value}, None)), steps, sums)

    def _resolved(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: self._tensors.get(value.target) if isinstance(value, fx.Node) else value
            for key, value in found.items()
        }

    def _is_sum(self, node: fx.Node) -> bool:
        return name(node) == "add" and not node.kwargs and len(parents(node)) == 2

    def _terms(self, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        """Return the terms of a sum, the one with fewer convolutions behind it first; raises NoPath
        where neither has fewer."""
        first, second = sorted(parents(node), key=self._depth.get)
        if self._depth[first] == self._depth[second]:
            raise NoPath(f"both terms of the sum {name(node)} are equally deep")
        return first, second

    def _cut(self, wanted: Any) -> nn.Module:
        graph, values = fx.Graph(), {}
        graph.graph_copy(self._graph, values)
        graph.output(fx.node.map_arg(wanted, lambda node: values[node]))
        return self._module(graph)

    def _module(self, graph: fx.Graph) -> nn.Module:
        export.drop_unused(graph)
        tensors = _fold_batch_norm(graph, self._tensors)
        # By number, since a module may be called as an attribute of fx's own, such as `graph`.
        places = {target: f"tensor_{place}" for place, target in enumerate(tensors)}
        for node in graph.nodes:
            if node.op == "get_attr":
                node.target = places[node.target]
        tensors = {places[target]: tensor for target, tensor in tensors.items()}
        return fx.GraphModule(tensors, graph).eval()

    def without_filters(self, layer: str) -> nn.Module | None:
        """Return the layer's prefix with all filters zero, if each of its channels is fed by one
        filter of the first convolution and by nothing else, else None."""
        filters = [*(self._upstream(self.node(layer)) & self._filters)]
        if len(filters) != 1 or name(filters[0]) not in operations.CONVOLUTIONS:
            return None
        weight = self._weight(filters[0])
        if len(weight) != self.shape(layer)[0]:
            return None
        target = arguments(filters[0])["weight"].target
        tensors = self._tensors | {target: torch.zeros_like(weight)}
        return Graph(dataclasses.replace(self.exported, tensors=tensors)).prefix(layer)

    # ---- classifier

    def _heads(self) -> list[fx.Node]:
        """Return the linear layers or 1 x 1 convolutions whose sum, mostly one, gives the logits;
        none where the network has no classifier."""
        if self._output is None or len(shape(self._output) or ()) != 2:
            return []
        classes, found, stack = shape(self._output)[1], [], [self._output]
        while stack:
            node = stack.pop()
            if node in self._filters:
                weight = self._weight(node)
                if len(weight) != classes or weight.numel() != classes * weight.shape[1]:
                    return []
                found.append(node)
            elif name(node) in _BEHIND_A_HEAD and parents(node):
                stack += parents(node)
            else:
                return []
        return found

    def _features(self) -> fx.Node | None:
        """Return the vector (N, D) that the classifier weighs, where there is one."""
        heads = self._heads()
        found = parents(heads[0])[0] if len(heads) == 1 else None
        return found if found is not None and len(shape(found)) == 2 else None

    def pooled_head(self, layer: str) -> torch.Tensor | None:
        """Return the weights (classes, C) of the classifier if nothing lies behind the layer but
        averaging over its positions and the classifier, else None."""
        start, behind, crossing = self._crossing(layer)
        if self._features() is None or crossing:
            return None
        steps = [node for node in behind if node is not start and node.meta["field"] is not None]
        heads = [node for node in steps if node in self._filters]
        linear = all(name(node) in _LINEAR_BEHIND and len(parents(node)) == 1 for node in steps)
        if not linear or heads != self._heads():
            return None
        weight = self._weight(heads[0])
        if weight.shape[1] != self.shape(layer)[0]:
            return None
        # Linear maps that agree on a random input agree everywhere.
        generator = torch.Generator().manual_seed(0)
        value = torch.randn(2, *shape(start)[1:], generator=generator).to(weight)
        bias = self._resolved(arguments(heads[0])).get("bias")
        with torch.inference_mode():
            found = self.split(layer)[1](value)
            expected = value.flatten(1).view(*value.shape[:2], -1).mean(2) @ weight.T
            expected = expected if bias is None else expected + bias
        same = (found - expected).abs().max() <= _ROUNDING * expected.abs().max()
        return weight if same else None

    # ---- properties of layers

    def field(self, layer: str) -> Field:
        """Return what the layer's units see of the image."""
        return self.node(layer).meta["field"]

    def rectified(self, layer: str) -> bool:
        """Return whether the layer's values come from a ReLU (also through pooling, sums and
        reshaping)."""
        return self._rectified(self.node(layer))

    def gflops(self, layer: str | None = None) -> float:
        """Return the 10^9 floating-point operations of convolutions and linear layers, per image,
        up to a layer."""
        nodes = self._upstream(self._output if layer is None else self.node(layer))
        weighted = nodes & (self._filters | self._blurs)
        sizes = ((self._weight(node), elements(node)) for node in weighted)
        return sum(2.0 * weight.numel() * count / len(weight) for weight, count in sizes) / 1e9

    def kept_bytes(self, layer: str | None = None) -> float:
        """Return the bytes of all intermediate values up to a layer (all, for None), per image:
        what a backward pass keeps at most."""
        nodes = self._upstream(self._output if layer is None else self.node(layer))
        return sum(4.0 * elements(node) for node in nodes)

    def filter_norms(self, layer: str) -> torch.Tensor | None:
        """Return the filter norm of every channel (C,), float64, or None where no single filter
        feeds the channel.

        L2 norm of the incoming filter with batch norm folded in: a block's is that of its residual
        branch's last convolution, a pooling's that of the convolution before it. Gates do not
        count.
        """
        norms = self._norms(self.node(layer), {})
        if norms is None:
            return None
        return norms[0] if norms.ndim == 2 else norms[0, :, 0, 0]

    def next_norms(self, layer: str) -> torch.Tensor | None:
        """Return what the filters that read a layer next make of each channel (C,), float64: the L2
        norm of all their weights for it, batch norms before and behind them folded in.

        Whatever keeps channels apart may lie between, and counts as the identity: activation
        functions, poolings, sums (a skip connection leads to the filters of later blocks). None
        where anything else reads the layer, or nothing does.
        """
        start = self.node(layer)
        channels = shape(start)[1]
        squares = torch.zeros(channels, dtype=torch.float64)
        seen, stack = {start}, [(start, torch.ones(channels, dtype=torch.float64))]
        while stack:
            node, scale = stack.pop()
            if node is self._output or not node.users:
                return None
            for user in node.users:
                if user in self._filters:
                    weight = self._read_weight(user, channels)
                    if weight is None:
                        return None
                    squares += (weight * scale).square().sum(1).sum(0)
                    continue
                if not self._keeps_channels(user, channels):
                    return None
                if user not in seen:
                    seen.add(user)
                    factor = 1.0
                    if name(user) == "batch_norm":
                        factor = batch_norm_scale(self._resolved(arguments(user))).cpu()
                    stack.append((user, scale * factor))
        return squares.sqrt()

    def _read_weight(self, node: fx.Node, channels: int) -> torch.Tensor | None:
        """Return the weights of a filter for each channel that it reads (outputs, taps, channels),
        with what lies behind folded in; None where it does not read them one by one."""
        weight = self._weight(node).detach().cpu().double()
        a = arguments(node)
        if a.get("transposed") or weight.ndim < 2:
            return None
        groups = a.get("groups", 1)
        inputs = weight.shape[1] * groups
        if inputs % channels:
            return None
        factor = self._folded_factor(node).cpu().view(-1, *[1] * (weight.ndim - 1))
        weight = (weight * factor).view(groups, len(weight) // groups, weight.shape[1], -1)
        # A channel is an input, or after flattening so many inputs in a row.
        weight = weight.permute(1, 3, 0, 2).flatten(2).unflatten(2, (channels, -1))
        return weight.permute(0, 1, 3, 2).flatten(1, 2)

    def _keeps_channels(self, node: fx.Node, channels: int) -> bool:
        kind, own = name(node), shape(node)
        if own is None:
            return False
        if kind in operations.RESHAPES:
            return len(own) in (2, 4) and own[1] % channels == 0
        known = operations.POOLINGS | operations.ADAPTIVE | operations.PADDINGS
        known |= {"batch_norm", "mean"}
        known = kind in known or node in self._blurs or operations.is_pointwise(node)
        mixes = kind in {"channel_shuffle", "getitem", "expand", "expand_as"}
        return known and not mixes and own[1:2] == (channels,)

    def _upstream(self, node: fx.Node | None) -> set[fx.Node]:
        needed, stack = set(), [node]
        while stack:
            node = stack.pop()
            if isinstance(node, fx.Node) and node not in needed:
                needed.add(node)
                stack.extend(node.all_input_nodes)
        return needed

    def _main_parents(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs that depend on the image, without gates and constants made of it."""
        above = parents(node)
        placed = [p for p in above if p.meta["field"].local is not None] or above
        if name(node) != "mul":
            return placed
        own = shape(node)
        full = [p for p in placed if shape(p) == own] or placed
        return [p for p in full if name(p) not in _GATES] or full

    def _is_blur(self, node: fx.Node) -> bool:
        """Return whether a convolution averages every channel by itself, all in the same way."""
        a, weight = arguments(node), self._weight(node)
        if not 1 < len(weight) == a.get("groups") or a["bias"] is not None:
            return False
        return bool((weight == weight[:1]).all() and (weight >= 0).all() and weight.any())

    def _weight(self, node: fx.Node) -> torch.Tensor | None:
        """Return the weights (C, ...) of a convolution or linear layer; None where they depend on
        the image."""
        a = arguments(node)
        kind = name(node)
        weight = a.get("weight", a.get("mat2", a.get("other")))
        if not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        found = self._tensors[weight.target]
        return found.T if kind not in operations.CONVOLUTIONS | {"linear"} else found

    def _norms(self, node: fx.Node, known: dict) -> torch.Tensor | None:
        """Return the norm of the filter that feeds each element of a value, in the value's
        shape."""
        if node in known or node.op != "call_function":
            return known.get(node)
        own = shape(node)
        found = None
        if node in self._filters:
            norms = self._weight(node).detach().double().flatten(1).norm(dim=1)
            norms = norms * self._folded_factor(node).abs()
            if name(node) in operations.CONVOLUTIONS:
                norms = norms.view(-1, 1, 1)
            found = norms.expand(own)
        elif name(node) in _MOVES:
            found = self._moved_norms(node, known)
        else:
            above = self._main_parents(node)
            if above:
                found = self._norms(max(above, key=self._depth.get), known)
            if found is not None and "dim" in arguments(node) and found.ndim > len(own):
                found = found.amax(arguments(node)["dim"])
            if found is not None:
                found = _fitted(found, own, node)
        known[node] = found
        return found

    def _moved_norms(self, node: fx.Node, known: dict) -> Any:
        values = {parent: self._norms(parent, known) for parent in parents(node)}
        if any(value is None for value in values.values()):
            return None
        args, kwargs = operations.concrete((node.args, node.kwargs), self._tensors, values)
        return node.target(*args, **kwargs)

    def _folded_factor(self, node: fx.Node) -> torch.Tensor:
        """Return what a batch norm and a constant directly behind a convolution or linear layer
        multiply its channels with (C,), float64."""
        weight = self._weight(node)
        found = torch.ones(len(weight), dtype=torch.float64, device=weight.device)
        while len(node.users) == 1:
            (node,) = node.users
            if name(node) == "batch_norm":
                found = found * batch_norm_scale(self._resolved(arguments(node)))
                continue
            constants = [one for one in node.all_input_nodes if one.op == "get_attr"]
            if name(node) != "mul" or len(constants) != 1 or len(parents(node)) != 1:
                break
            factor = self._tensors[constants[0].target]
            if factor.numel() != len(found):
                break
            found = found * factor.double().flatten()
        return found

    def _before_relu(self, node: fx.Node) -> fx.Node | None:
        """Return the input of a ReLU, however it is written; None for any other operation."""
        kind, above = name(node), parents(node)
        if kind in ("relu", "relu6"):
            return above[0]
        if kind in ("clamp_min", "clamp", "hardtanh"):
            a = arguments(node)
            return above[0] if len(above) == 1 and a.get("min", a.get("min_val")) == 0 else None
        if kind == "threshold":
            a = arguments(node)
            return above[0] if a["threshold"] == a["value"] == 0 else None
        if kind == "maximum":
            others = [one for one in node.all_input_nodes if one not in above]
            zero = len(above) == len(others) == 1 and self._is_zero(others[0])
            return above[0] if zero else None
        if kind == "mul" and len(above) == 2:
            for value, gate in (above, above[::-1]):
                if name(gate) in ("gt", "ge") and gate.args[0] is value and gate.args[1] == 0:
                    return value
        return None

    def _is_zero(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return not self._tensors[node.target].any()
        return name(node) in ("zeros_like", "new_zeros")

    def _rectified(self, node: fx.Node) -> bool:
        if self._before_relu(node) is not None:
            return True
        above = parents(node)
        if name(node) == "add":
            # A sum with a number (x + 1) has a single tensor parent and is no longer zero where x
            # is.
            keeps = len(above) == 2
        elif name(node) in operations.PADDINGS:
            keeps = not arguments(node).get("value")
        else:
            keeps = node in self._blurs or name(node) in _KEEPS_RECTIFIED
        return keeps and bool(above) and all(map(self._rectified, above))


def _fitted(norms: torch.Tensor, own: tuple, node: fx.Node) -> torch.Tensor | None:
    """Return norms in the shape of a value that has the same channels, be they at other
    positions."""
    field = node.meta["field"]
    if norms.ndim != len(own):
        return None
    for axis in field.axes if field.local is not None else range(2, len(own)):
        norms = norms.narrow(axis, 0, 1)
    try:
        return norms.expand(own)
    except RuntimeError:
        return None


def elements(node: fx.Node) -> float:
    """Return the elements of a node's value for one image; 0 for constants and what is no
    tensor."""
    found = shape(node)
    return 0 if found is None or node.op == "get_attr" else math.prod(found) / 2


def _fold_batch_norm(
    graph: fx.Graph, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Fold every batch norm into the convolution before it, where nothing else reads the
    convolution's output; return the tensors that the graph then needs."""
    tensors = dict(tensors)
    for node in list(graph.nodes):
        if name(node) != "batch_norm" or arguments(node)["training"]:
            continue
        before = node.args[0]
        if name(before) != "conv2d" or len(before.users) != 1:
            continue
        a, b = arguments(before), arguments(node)
        operands = [a["weight"], a["bias"], *(b[k] for k in ("running_mean", "running_var"))]
        operands += [b["weight"], b["bias"]]
        if any(one is not None and one.op != "get_attr" for one in operands):
            continue
        weight, bias, mean, variance, gain, shift = (
            None if one is None else tensors[one.target] for one in operands
        )
        folded = fuse_conv_bn_weights(weight, bias, mean, variance, b["eps"], gain, shift)
        with graph.inserting_before(before):
            new = [
                graph.create_node(
                    "get_attr", f"@{before.name}_{part}", name=f"{before.name}_{part}"
                )
                for part in ("weight", "bias")
            ]
        for one, value in zip(new, folded, strict=True):
            tensors[one.target] = value.detach()
            one.meta = {"shape": tuple(value.shape), "field": None, "module": ""}
        before.args = (before.args[0], *new, *before.args[3:])
        before.kwargs = {k: v for k, v in before.kwargs.items() if k not in ("weight", "bias")}
        node.replace_all_uses_with(before)
        graph.erase_node(node)
    export.drop_unused(graph)
    return {node.target: tensors[node.target] for node in graph.nodes if node.op == "get_attr"}


def first_kernels(traced: Graph, layer: str) -> torch.Tensor:
    """Return the kernels (C, 3, h, w), float64, of a layer that is one convolution of the image,
    batch norms before and behind it folded in; raises NoPath for any other layer."""
    path = traced.linear_path(layer)
    names = [step for step, _ in path.steps]
    plain = set(names) <= {"conv2d", "batch_norm"} and names.count("conv2d") == 1
    if path.sums or not plain or dict(path.steps)["conv2d"]["groups"] != 1:
        raise NoPath("the layer is not a single convolution of the image")
    kernels = dict(path.steps)["conv2d"]["weight"].detach().cpu().double()
    behind = False
    for step, a in path.steps:
        if step == "batch_norm":
            scale = batch_norm_scale(a).detach().cpu()
            kernels = kernels * scale.view((-1, 1, 1, 1) if behind else (1, -1, 1, 1))
        behind |= step == "conv2d"
    return kernels


def batch_norm_scale(norm: Mapping[str, Any]) -> torch.Tensor:
    """Return the factor (C,), float64, by which a batch norm multiplies each channel; `norm` its
    arguments."""
    variance = norm["running_var"].double()
    gain = torch.ones_like(variance) if norm["weight"] is None else norm["weight"].double()
    return gain / (variance + norm["eps"]).sqrt()

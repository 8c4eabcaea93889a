"""What ATen operations do to the place of a unit: local with a window, pointwise, or global.

Operations that are not known here are found out by a numerical probe: the support of the gradient
over random inputs, and its shift from one unit to the next.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from rfatlas.network.geometry import Field, Geometry

log = logging.getLogger("rfatlas")

#: Do nothing to a value when a network is not being trained.
DROPPED = {
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout",
    "detach", "alias", "lift", "lift_fresh", "lift_fresh_copy",
}  # fmt: skip
COPIES = {"contiguous", "clone", "to", "_to_copy", "type_as"}
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"}
TURNS = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t"}
PADDINGS = {"pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"}
CONVOLUTIONS = {"conv2d", "convolution"}
MULTIPLICATIONS = {"linear", "mm", "addmm", "matmul"}
POOLINGS = {"max_pool2d", "max_pool2d_with_indices", "avg_pool2d"}
ADAPTIVE = {
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool1d",
}  # fmt: skip
#: Pointwise, though torch has no tag that says so.
_POINTWISE = {
    "hardswish", "prelu", "_prelu_kernel", "softsign", "log_sigmoid", "tanhshrink", "rrelu",
    "channel_shuffle", "getitem", "expand", "expand_as", "copy",
}  # fmt: skip
_CONSTANTS = {
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
    "new_empty",
}  # fmt: skip
_ALONG_AN_AXIS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "norm", "argmax", "argmin",
    "linalg_vector_norm", "logsumexp", "var_mean", "std_mean", "any", "all",
}  # fmt: skip
_NORMALISATIONS = {"layer_norm", "softmax", "log_softmax", "_softmax", "_log_softmax"}
#: Normalise over positions.
_GROUP_NORMALISATIONS = {"group_norm", "instance_norm", "native_group_norm"}
# Take the last two of four axes for y and x.
_OF_MAPS = (
    CONVOLUTIONS
    | POOLINGS
    | ADAPTIVE
    | _GROUP_NORMALISATIONS
    | {"batch_norm", "conv_transpose2d", "pixel_shuffle", "pixel_unshuffle"}
)
_GLOBAL = Field(axes=None, whole=True)


def name(node: fx.Node) -> str:
    """Return the operation's name without its overload: `conv2d`, `add`, `getitem`."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet)) if node.op == "call_function" else node.op


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of an ATen operation by name, defaults included."""
    schema = node.target._schema.arguments
    found = {a.name: a.default_value for a in schema if a.has_default_value()}
    found |= {a.name: value for a, value in zip(schema, node.args, strict=False)}
    return found | node.kwargs


def shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a node's tensor for a batch of two, None where it is no tensor."""
    found = node.meta.get("shape") if isinstance(node, fx.Node) else None
    return found if isinstance(found, tuple) else None


def parents(node: fx.Node) -> list[fx.Node]:
    """Return the inputs of a node that depend on the image."""
    return [parent for parent in node.all_input_nodes if parent.meta.get("field") is not None]


def is_identity_pooling(node: fx.Node) -> bool:
    """Return whether an adaptive pooling leaves a map as it is, having its size already."""
    return name(node) in ADAPTIVE and shape(node)[-2:] == shape(node.args[0])[-2:] != (1, 1)


def is_pointwise(node: fx.Node) -> bool:
    """Return whether every element of the result depends on the same elements of the operands
    only."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or name(node) in _POINTWISE | COPIES | DROPPED


def window(node: fx.Node) -> tuple | None:
    """Return (kernel, stride, padding of the top and left, dilation) if the node slides a window
    over its first argument's last two axes, else None."""
    kind = name(node)
    one, none = (1, 1), (0, 0)
    if kind in CONVOLUTIONS and not arguments(node).get("transposed"):
        a = arguments(node)
        kernel, dilation = shape(a["weight"])[2:], _pair(a["dilation"])
        if len(kernel) != 2:
            return None
        padding = a["padding"]
        if padding == "same":
            padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
        return kernel, _pair(a["stride"]), none if padding == "valid" else _pair(padding), dilation
    if kind in POOLINGS:
        a = arguments(node)
        kernel = _pair(a["kernel_size"])
        stride, dilation = _pair(a["stride"] or kernel), _pair(a.get("dilation", 1))
        return kernel, stride, _pair(a["padding"]), dilation
    if kind in PADDINGS:
        a = arguments(node)
        left, _, top, _ = ([*(a.get("pad") or a.get("padding")), 0, 0, 0])[:4]
        return one, one, (top, left), one
    if kind == "slice":
        a = arguments(node)
        axis = a["dim"] % len(shape(node)) - len(shape(node)) + 2
        if axis < 0:
            return one, one, none, one
        extent = shape(a["self"])[axis - 2]
        start, _, step = slice(a["start"], a["end"], a["step"]).indices(extent)
        steps = tuple(step if own == axis else 1 for own in (0, 1))
        return one, steps, tuple(-start if own == axis else 0 for own in (0, 1)), one
    return None


def field(node: fx.Node, tensors: Mapping[str, torch.Tensor]) -> Field | None:
    """Return what the units of a node see; None where the value does not depend on the image.

    The node's inputs must have theirs in `meta["field"]`. `tensors` are what get_attr nodes mean.
    """
    if node.op == "placeholder":
        return Field(local=Geometry((1, 1), (0, 0), (0, 0)))
    above = [] if node.op == "output" else parents(node)
    kind = name(node)
    if node.meta.get("shape") == "size" or not above or kind in _CONSTANTS:
        return None
    fields = [parent.meta["field"] for parent in above]
    found = _known(node, kind, above, fields)
    if found is None:
        found = _probed(node, above, tensors)
    return replace(
        found,
        axes=_axes(node, kind, above, fields) if found.local is None else found.axes,
        whole=found.whole or any(one.whole for one in fields),
        fixed=found.fixed or any(one.fixed for one in fields),
        probed=tuple(dict.fromkeys(sum((one.probed for one in fields), ()) + found.probed)),
    )


def _axes(
    node: fx.Node, kind: str, above: list[fx.Node], fields: list[Field]
) -> tuple[int, int] | None:
    """Return the axes along y and x of a value whose units have no place of their own."""
    own, inner, axes = shape(node), shape(above[0]), fields[0].axes
    if own is None or inner is None:
        return None if kind == "unbind" else axes
    if len(own) == 4 and kind in _OF_MAPS:
        return 2, 3
    if axes is not None and kind in TURNS:
        return _turned(node, axes)
    if axes is not None and kind in RESHAPES:
        return reshaped(inner, own, axes)
    if kind in MULTIPLICATIONS - {"linear"}:
        return None
    alike = {
        one.axes
        for parent, one in zip(above, fields, strict=True)
        if len(shape(parent)) == len(own)
    }
    return alike.pop() if len(alike) == 1 else None


def _turned(node: fx.Node, axes: tuple[int, int]) -> tuple[int, int]:
    """Return where two axes lie after a permutation."""
    sizes = torch.empty([2 + axis for axis in range(len(shape(node.args[0])))], device="meta")
    turned = list(node.target(sizes, *node.args[1:], **node.kwargs).shape)
    return tuple(turned.index(2 + axis) for axis in axes)


def _known(node: fx.Node, kind: str, above: list[fx.Node], fields: list[Field]) -> Field | None:
    """Return the field behind an operation known here, else None."""
    first, own, inner = fields[0], shape(node), shape(above[0])
    several = own is None or inner is None
    if is_pointwise(node):
        return first if several else _joined(own, above, fields)
    placed = next((one for one in fields if one.local is not None), None)
    if placed is None:
        return _GLOBAL
    if kind == "slice_scatter":
        return _GLOBAL if arguments(node)["dim"] in placed.axes else _joined(own, above, fields)
    if kind in ("cat", "stack"):
        dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(own)
        if kind == "cat":
            return _GLOBAL if dim in placed.axes else _joined(own, above, fields)
        # Without the new axis the operands lie on each other.
        joined = _joined(inner, above, fields)
        return replace(joined, axes=tuple(axis + (axis >= dim) for axis in joined.axes))
    if kind in ("chunk", "split", "split_with_sizes", "unbind"):
        dim = arguments(node)["dim"] % len(inner)
        if dim in first.axes:
            return _GLOBAL
        return replace(
            first, axes=tuple(axis - (kind == "unbind" and axis > dim) for axis in first.axes)
        )
    if first.local is None:
        return _GLOBAL
    ndim = len(inner)
    last = tuple(axis % ndim for axis in (-2, -1))
    slid = window(node)
    if slid is not None:
        if first.axes != last and not (kind == "slice" and slid[1:3] == ((1, 1), (0, 0))):
            return _GLOBAL
        # Filters made from the image, and padding with the far side of it.
        beyond = len(above) > 1 or node.args[2:3] == ("circular",)
        return replace(first, local=first.local.windowed(*slid), whole=beyond)
    if kind == "batch_norm":
        return replace(first, whole=bool(arguments(node)["training"]))
    if kind in RESHAPES:
        axes = reshaped(inner, own, first.axes)
        return _GLOBAL if axes is None else replace(first, axes=axes)
    if kind in TURNS:
        return replace(first, axes=_turned(node, first.axes))
    if kind in _GROUP_NORMALISATIONS:
        return replace(first, whole=True)
    if kind in _NORMALISATIONS:
        a = arguments(node)
        over = range(-len(a["normalized_shape"]), 0) if kind == "layer_norm" else [a["dim"]]
        return replace(first, whole=any(axis % ndim in first.axes for axis in over))
    if kind in _ALONG_AN_AXIS and not several:
        return _reduced(node, ndim, own, first)
    if kind in MULTIPLICATIONS and len(above) == 1 and ndim - 1 not in first.axes:
        return first if above[0] is node.args[0] else _GLOBAL
    if kind in ADAPTIVE:
        return _GLOBAL
    return None


def _joined(own: tuple, above: list[fx.Node], fields: list[Field]) -> Field:
    """Return the field of values laid on each other; what is the same for all positions is taken
    as a constant that the whole image makes."""
    found, whole = None, False
    for parent, one in zip(above, fields, strict=True):
        if one.local is None:
            whole = True
            continue
        back = tuple(axis - len(shape(parent)) for axis in one.axes)
        if any(shape(parent)[axis] == 1 < own[axis] for axis in back):
            whole = True
            continue
        placed = replace(one, axes=tuple(axis + len(own) for axis in back))
        if found is None:
            found = placed
        elif found.axes != placed.axes or found.local.stride != placed.local.stride:
            return _GLOBAL
        else:
            found = replace(found, local=found.local.union(placed.local))
    return _GLOBAL if found is None else replace(found, whole=whole)


def reshaped(old: tuple, new: tuple, axes: tuple[int, int]) -> tuple[int, int] | None:
    """Return where two axes lie after a reshape from shape `old` to `new`; None where one is joined
    with others or taken apart."""
    found = []
    for axis, pick in zip(axes, (0, -1), strict=True):
        before = math.prod(old[:axis])
        places = [
            place
            for place, extent in enumerate(new)
            if extent == old[axis] and math.prod(new[:place]) == before
        ]
        if not places:
            return None
        found.append(places[pick])
    return tuple(found) if found[0] != found[1] else None


def _reduced(node: fx.Node, ndim: int, own: tuple, first: Field) -> Field:
    a = arguments(node)
    dims = a.get("dim")
    if dims is None or dims == []:
        return _GLOBAL
    dims = {dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    if dims & set(first.axes):
        return _GLOBAL
    if len(own) == ndim:
        return first
    return replace(first, axes=tuple(axis - sum(d < axis for d in dims) for axis in first.axes))


def _pair(value: int | list) -> tuple[int, int]:
    value = [value] if isinstance(value, int) else list(value)
    return tuple(value * 2 if len(value) == 1 else value)


# ---- finding out

_TRIES = 3


def concrete(arg: Any, tensors: Mapping[str, torch.Tensor], inputs: Mapping[fx.Node, Any]) -> Any:
    """Return an operation's argument with values in place of nodes."""

    def value(node: fx.Node) -> Any:
        if node in inputs:
            return inputs[node]
        return tensors[node.target] if node.op == "get_attr" else node.meta["value"]

    return fx.node.map_arg(arg, value)


def _probed(node: fx.Node, above: list[fx.Node], tensors: Mapping[str, torch.Tensor]) -> Field:
    """Return the field behind an unknown operation, by the support of its gradient."""
    try:
        found = _support(node, above, tensors)
    except Exception as error:
        log.debug("%s cannot be tried: %s", node.target, error)
        found = None
    field = _GLOBAL if found is None else found
    log.info(
        "%s (%s): not known; by the support of its gradient it is %s",
        node.target,
        node.meta.get("module") or "network",
        "global" if found is None else "local",
    )
    return replace(field, probed=(name(node),))


def _support(
    node: fx.Node, above: list[fx.Node], tensors: Mapping[str, torch.Tensor]
) -> Field | None:
    """Return the field of an operation on one map whose units see boxes that move by a whole
    stride, along one axis each for y and x, else None."""
    (parent,) = above
    before, own, inner = parent.meta["field"], shape(node), shape(parent)
    generator = torch.Generator().manual_seed(0)
    constants = {
        one.target: tensors[one.target].cpu().double()
        for one in node.all_input_nodes
        if one.op == "get_attr"
    }

    def spans(axis: int, places: list[int]) -> list[list[tuple[int, int]]]:
        """First and last y, and x, that the result depends on at some places of an axis."""
        seen = torch.zeros(len(places), *inner, dtype=torch.bool)
        for _ in range(_TRIES):
            x = torch.randn(inner, generator=generator, dtype=torch.float64).requires_grad_()
            args, kwargs = concrete((node.args, node.kwargs), constants, {parent: x})
            weights = torch.randn(own, generator=generator, dtype=torch.float64)
            result = node.target(*args, **kwargs) * weights
            for number, place in enumerate(places):
                part = result.select(axis, place).sum()
                (gradient,) = torch.autograd.grad(part, x, retain_graph=True)
                seen[number] |= gradient != 0
        hit = [one.nonzero()[:, before.axes] for one in seen]
        return [
            list(zip(h.min(0).values.tolist(), h.max(0).values.tolist(), strict=True)) for h in hit
        ]

    found: tuple[list, list] = ([], [])
    for axis in range(1, len(own)):
        middle = own[axis] // 2
        if own[axis] < 3:
            continue
        places = [middle - 1, middle, middle + 1, 0, own[axis] - 1]
        ends = spans(axis, places)
        for a in (0, 1):
            (low, high), step = ends[1][a], ends[1][a][0] - ends[0][a][0]
            low, high = low - middle * step, high - middle * step
            boxes = [(low + place * step, high + place * step) for place in places]
            alike = [end[a] for end in ends[:3]] == boxes[:3]
            inside = all(
                b[0] <= e[a][0] and e[a][1] <= b[1] for b, e in zip(boxes, ends, strict=True)
            )
            if step > 0 and alike and inside:
                found[a].append((axis, high - low + 1, step, -low))
    if [len(one) for one in found] != [1, 1] or found[0][0][0] == found[1][0][0]:
        return None
    axes, kernel, stride, padding = zip(*(one[0] for one in found), strict=True)
    return replace(before, axes=axes, local=before.local.windowed(kernel, stride, padding, (1, 1)))

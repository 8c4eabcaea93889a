"""Stage `receptive_fields`: what the units that a channel likes best look at, from exact crops of
the network.

For each channel the K strongest units are taken (positions and values come from `activations.h5`).
The gradient of a unit is computed on a crop of its image (see `crops`), where activation and
gradient are those of the whole image. All crops of a layer have one size, so units of different
images, channels and positions share a batch and one backward pass.

Units that lie in the same crop (deep layers, whose crop is the whole image) share its forward pass.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import optimize
from torch import nn

from rfatlas import statistics
from rfatlas.errors import RfatlasError
from rfatlas.fields import crops, skip_residual
from rfatlas.fields.crops import Units, Window, cut_windows
from rfatlas.files import store
from rfatlas.files.task import Task

# Share of the centre above which a pixel belongs to the effective RF (Luo et al. 2016, where it is
# 1 - 0.9545, the two-sigma level); of a Gaussian, all within 2.49 sigma.
ERF_THRESHOLD = 0.0455

# A recomputed activation further from the cached one than this share of the layer's largest means
# that the two come from other weights or images; float32 rounding stays far below.
_CERTIFICATE_LIMIT = 1e-2

# So many of a channel's strongest units are looked at again, their pixels (0..1) moved by noise of
# about what float32 rounds away: on the edge of a ReLU or a max pooling it decides which way the
# gradient takes.
_AGAIN, _NOISE = 2, 1e-7

_CPU = torch.device("cpu")


# ---- units


@dataclass(frozen=True)
class Seen:
    """What some units see, on a device.

    Activation `value` (n,); in the stored windows `gradient` (n, 3, S, S) float32, `image` (n, 3,
    S, S) uint8 and `inside` (n, S, S) bool, true in the image; `energy` (n,) float64, the squared
    gradient summed over the whole image; the `parts` of the gradient, None where it is whole.
    """

    value: torch.Tensor
    gradient: torch.Tensor
    image: torch.Tensor
    inside: torch.Tensor
    energy: torch.Tensor
    parts: skip_residual.Parts | None


def look(
    model: Any,
    network: nn.Module,
    cut: Window,
    images: Any,
    channels: np.ndarray,
    units: Units,
    rounds: list[np.ndarray],
    split: bool = False,
    noise: float = 0.0,
) -> Iterator[tuple[Units, Seen]]:
    """Yield, per round of one batch (see `crops.batches`), its units and what they see.

    `network` gives a layer's value, or with `split` what `graph.split_block` does. `images` uint8
    (N, H, H, 3) is indexed by the units' image; `channels` maps their slots to channels of the
    layer. Gradients are with respect to pixels in 0..1. The sum of a round's units is
    differentiated in one backward pass (two for both parts), as no crop sees another's unit. With
    `noise` every pixel is moved by at most so much.
    """
    device = model.device

    def moved(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array).to(device) for array in arrays)

    members = [units.take(rows) for rows in rounds]
    pictures = crops.gather(images, cut, members[0], device)
    places = [
        moved(
            channels[member.slot].astype(np.int64),
            cut.position_in_crop(member.y, 0),
            cut.position_in_crop(member.x, 1),
        )
        for member in members
    ]
    pixels = pictures.float() / 255
    if noise:
        random = torch.Generator().manual_seed(0)
        pixels += noise * (2 * torch.rand(pixels.shape, generator=random) - 1).to(device)
    passes = crops.forward(model, network, pixels, places)
    for member, (pixels, output, at, keep) in zip(members, passes, strict=True):
        axes = enumerate((member.y, member.x))
        corner = moved(*(cut.window_start(p, axis) - cut.crop_start(p, axis) for axis, p in axes))
        if split:
            value = output[0][at]
            parts = skip_residual.look(output, pixels, at, keep, corner, cut.size)
            gradient = parts.skip + parts.residual
            energy = parts.energy @ parts.energy.new_tensor([1, 1, 2])
        else:
            output = output[:, :, None, None] if output.ndim == 2 else output
            value, parts = output[at], None
            (whole,) = torch.autograd.grad(value.sum(), pixels, retain_graph=keep)
            whole = whole[: len(member)]
            gradient = cut_windows(whole, *corner, cut.size)
            energy = whole.double().square().sum((1, 2, 3))
        seen = pictures[: len(member)]
        inside = cut_windows(torch.ones_like(seen[:, :1]), *corner, cut.size)[:, 0] > 0
        image = cut_windows(seen, *corner, cut.size)
        yield member, Seen(value.detach(), gradient, image, inside, energy, parts)


def gradient_change(
    model: Any,
    network: nn.Module,
    cut: Window,
    images: Any,
    channels: np.ndarray,
    units: Units,
    gradient: torch.Tensor,
    size: int,
) -> np.ndarray:
    """Return how far the gradients of each channel's strongest units move when rounding changes.

    (C,) largest norm of the change over that of the gradient, the pixels moved by 1e-7; NaN for a
    channel without units. `gradient` (C, keep, 3, S, S) are those without noise, of which two are
    looked at again, `size` crops at a time; for the rest see `look`.
    """
    found = np.full(len(channels), np.nan)
    units = units.take(np.flatnonzero(units.rank < min(_AGAIN, gradient.shape[1])))
    for rounds in crops.batches(units, cut, size):
        seen = look(model, network, cut, images, channels, units, rounds, noise=_NOISE)
        for members, again in seen:
            before = gradient[members.slot, members.rank].flatten(1)
            moved = (again.gradient.cpu().flatten(1) - before).norm(dim=1)
            np.fmax.at(found, members.slot, (moved / before.norm(dim=1)).numpy())
    return found


# ---- effective receptive field


def fit_gaussian(field: np.ndarray) -> tuple[float, float, float, float]:
    """Return (sigma, y, x, r2) of the least-squares fit of a round Gaussian to a field F (S, S).

    The model is A exp(-((i - y)^2 + (j - x)^2) / (2 sigma^2)), in pixels; `r2` is 1 - residual /
    total sum of squares. The amplitude is linear and projected out, so three parameters remain:
    maximise (g_y' F g_x)^2 / (|g_y|^2 |g_x|^2). Sigma stays within 0.2 pixels and 4 S (a flat field
    has no width of its own); NaN for a field without variation.
    """
    size = len(field)
    total = ((field - field.mean()) ** 2).sum()
    if not total > 0:
        return math.nan, math.nan, math.nan, math.nan
    grid = np.arange(size)
    weight = np.abs(field) / np.abs(field).sum()
    rows, columns = weight.sum(1), weight.sum(0)
    y, x = rows @ grid, columns @ grid
    spread = math.sqrt(max((rows @ (grid - y) ** 2 + columns @ (grid - x) ** 2) / 2, 0.25))

    def width(parameters: np.ndarray) -> float:
        return math.exp(np.clip(parameters[0], math.log(0.2), math.log(4 * size)))

    def explained(parameters: np.ndarray) -> float:
        sigma = width(parameters)
        vertical = np.exp(-((grid - parameters[1]) ** 2) / (2 * sigma**2))
        horizontal = np.exp(-((grid - parameters[2]) ** 2) / (2 * sigma**2))
        norm = (vertical @ vertical) * (horizontal @ horizontal)
        return float((vertical @ field @ horizontal) ** 2 / norm) if norm > 0 else 0.0

    best = max(
        (
            optimize.minimize(
                lambda p: -explained(p),
                np.array([math.log(start), y, x]),
                method="Nelder-Mead",
                options={"xatol": 1e-4, "fatol": 1e-10 * total, "maxiter": 400},
            )
            for start in (spread, spread / 3)
        ),
        key=lambda result: -result.fun,
    )
    residual = (field**2).sum() + best.fun
    return width(best.x), best.x[1], best.x[2], 1 - residual / total


def effective_rf(mean_abs_gradient: np.ndarray) -> tuple[float, float, float]:
    """Return (erf_sigma, erf_r2, erf_fraction) of one channel's mean absolute gradient (3, S, S).

    Colours are summed. Sigma in pixels; the fraction is the share of the S x S window above 4.55 %
    of its centre pixel (Luo et al. 2016), NaN where the centre is zero.
    """
    field = mean_abs_gradient.sum(0)
    sigma, _, _, r2 = fit_gaussian(field)
    centre = field[len(field) // 2, len(field) // 2]
    fraction = float((field > ERF_THRESHOLD * centre).mean()) if centre > 0 else math.nan
    return sigma, r2, fraction


# ---- channels


def plan(
    cut: Window,
    channels: int,
    units: int,
    keep: int,
    crop_bytes: float,
    memory_mb: float,
    device: torch.device = _CPU,
    split: bool = False,
) -> tuple[int, int]:
    """Return block and batch sizes for a layer (see `crops.plan`) of which `keep` units per channel
    are kept one by one."""
    per_pixel = 5 * 3 * 8 * 2 + 4 * 3 + keep * 3 * 5 + split * skip_residual.PIXEL_BYTES
    return crops.plan(cut, channels, units, per_pixel, crop_bytes, memory_mb, device)


class _Block:
    """Channels that are worked on together, and in `held`, by name, all that is kept of them until
    they are finished.

    `halves` (channels, 2, 3, S, S) sums of the gradients of odd ranks (1st, 3rd, ...) and of even
    ranks, and how many windows have the pixel in the image (`counts`); sums of absolute gradients,
    of images, and of absolute gradients times images; the energy of the gradients `inside` the
    windows and in all.
    """

    def __init__(
        self, cut: Window, channels: int, k: int, keep: int, split: bool, device: torch.device
    ):
        window = cut.size, cut.size

        def zeros(*shape: int, dtype: torch.dtype = torch.float64, device=device) -> torch.Tensor:
            return torch.zeros(channels, *shape, dtype=dtype, device=device)

        self.held = {
            "halves": zeros(2, 3, *window),
            "counts": zeros(2, *window, dtype=torch.int32),
            **{name: zeros(3, *window) for name in ("size", "image", "effective")},
            "inside": zeros(),
            "energy": zeros(),
            "patch": zeros(keep, *window, 3, dtype=torch.uint8, device=_CPU),
            "gradient": zeros(keep, 3, *window, dtype=torch.float32, device=_CPU),
            "certificate": torch.full((channels, k), np.nan),
            "gradient_change": torch.full((channels,), np.nan, dtype=torch.float64),
        }
        self.parts = skip_residual.Sums(cut, channels, device) if split else None
        self.held |= self.parts.held if split else {}

    def add(self, units: Units, seen: Seen) -> None:
        """Add what the units of one round see."""
        held, device = self.held, seen.gradient.device
        slot, rank = torch.from_numpy(units.slot), torch.from_numpy(units.rank)
        held["certificate"][slot, rank] = (seen.value.cpu() - torch.from_numpy(units.value)).abs()
        kept = rank < held["patch"].shape[1]
        at = slot[kept], rank[kept]
        held["patch"][at] = seen.image[kept.to(device)].permute(0, 2, 3, 1).cpu()
        held["gradient"][at] = seen.gradient[kept.to(device)].cpu()
        slot, half = slot.to(device), (2 * slot + rank % 2).to(device)
        gradient, image = seen.gradient.double(), (seen.image.float() / 255).double()
        size = gradient.abs()
        for name, place, values in (
            ("halves", half, gradient),
            ("counts", half, seen.inside.int()),
            ("size", slot, size),
            ("image", slot, image),
            ("effective", slot, size * image),
            ("inside", slot, gradient.square().sum((1, 2, 3))),
            ("energy", slot, seen.energy),
        ):
            held[name].view(-1, *values.shape[1:]).index_add_(0, place, values)
        if seen.parts is not None:
            self.parts.add(slot, seen.parts, seen.inside)

    def state(self) -> dict[str, np.ndarray]:
        """Return what is held as arrays."""
        return {name: values.cpu().numpy() for name, values in self.held.items()}

    def fields(self) -> dict[str, np.ndarray]:
        """Return the large datasets: means, zero where no unit has the pixel."""
        held = self.state()
        count = held["counts"].sum(1)
        divisor = np.maximum(count, 1)[:, None]
        parts = self.parts.means() if self.parts else {}
        return {
            "patch": held["patch"],
            "gradient": held["gradient"],
            "count": count.astype(np.int32),
            "mean_image": held["image"] / divisor,
            "mean_gradient": held["halves"].sum(1) / divisor,
            "mean_abs_gradient": held["size"] / divisor,
            "effective": held["effective"] / divisor,
            **{
                f"parts/{name}": values.astype(np.int32 if name == "count" else np.float32)
                for name, values in parts.items()
            },
        }

    def rows(self) -> dict[str, np.ndarray]:
        """Return the small results, a row per channel."""
        held = self.state()
        size = held["size"] / np.maximum(held["counts"].sum(1), 1)[:, None]
        effective = np.array([effective_rf(one) for one in size]).T
        halves = held["halves"] / np.maximum(held["counts"], 1)[:, :, None]
        split_half = statistics.correlation(*halves.reshape(len(halves), 2, -1).swapaxes(0, 1))
        split_half[held["counts"][:, 1].max((1, 2)) == 0] = np.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            energy_inside = (held["inside"] / held["energy"]).astype(np.float32)
        return {
            "certificate": held["certificate"],
            "gradient_change": held["gradient_change"],
            "energy_inside": energy_inside,
            "split_half": split_half,
            **dict(zip(("erf_sigma", "erf_r2", "erf_fraction"), effective, strict=True)),
            **(self.parts.columns() if self.parts else {}),
        }

    def resume(self, partial: store.Partial, first: int) -> int:
        """Take up what `partial` has of the block that begins at channel `first`, and return how
        many of its batches that are."""
        state = partial.load("state") if "state" in partial.names() else {"block": None}
        if state.pop("block") != first:
            return 0
        for name, values in self.held.items():
            values.copy_(torch.from_numpy(state[name]))
        return int(state["finished"])


# ---- one layer


def measure(
    model: Any,
    layer: str,
    images: Any,
    channels: np.ndarray,
    top: Mapping[str, np.ndarray],
    keep: int,
    parts: int,
    task: Task,
) -> None:
    """Write `<layer>.h5` (docs/files.md) and its table, of all channels of the layer.

    `images` uint8 (N, H, H, 3); `channels` (C,) the channels to analyse; `top` their `value` (C,
    K), `image` (C, K) and `yx` (C, K, 2); `keep`: patches and gradients kept per channel; `parts`:
    units per channel whose gradients are split (see `skip_residual`), 0 for a table without its
    columns. Killed, the work resumes from `<output>.partial`. Raises RfatlasError if recomputed
    activations are not the cached ones.
    """
    graph, image_size = model.graph, model.description["input"]["crop"]
    cut = crops.window(graph.field(layer), image_size)
    n, k = top["image"].shape
    keep = min(keep, k)
    split, reason = skip_residual.split(graph, layer) if parts else (None, "")
    kept_bytes = graph.kept_bytes(layer) * (cut.crop / image_size) ** 2
    size, batch = plan(cut, n, k, keep, kept_bytes, task.memory_mb, model.device, split is not None)
    partial = store.Partial(
        task.output,
        task.fingerprint(block=size, batch=batch, channels=channels.tolist(), parts=parts),
    )
    networks = {False: graph.prefix(layer), True: split}
    networks = {
        key: crops.differentiable(one, model.device) for key, one in networks.items() if one
    }
    with task.bar(total=int((top["image"] >= 0).sum()), unit="unit") as progress:
        for first in range(0, n, size):
            name, slots = f"rows-{first:06d}", slice(first, first + size)
            units = crops.list_units(*(top[key][slots] for key in ("value", "image", "yx")))
            if name in partial.names():
                progress.update(len(units))
                continue
            block = _Block(cut, len(channels[slots]), k, keep, split is not None, model.device)
            finished = block.resume(partial, first)
            work = cut, images, channels[slots], units
            every = _batches(units, cut, batch, parts if split is not None else 0)
            for number, (divided, rounds) in enumerate(every, 1):
                if number > finished:
                    for members, seen in look(model, networks[divided], *work, rounds, divided):
                        block.add(members, seen)
                    if partial.due:
                        place = {"block": np.array(first), "finished": np.array(number)}
                        partial.save("state", block.state() | place)
                progress.update(sum(map(len, rounds)))
            changed = gradient_change(model, networks[False], *work, block.held["gradient"], batch)
            block.held["gradient_change"] = torch.from_numpy(changed)
            partial.save(f"fields-{first:06d}", block.fields())
            partial.save(name, block.rows())
    blocks = [partial.load(name) for name in partial.names() if name.startswith("rows-")]
    rows = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    check_certificate(layer, channels, rows["certificate"], top["value"])
    place = {**crops.attributes(cut), "whole_image": cut.geometry is None}
    with store.create(task.output, {**task.attrs, **place}) as file:
        file["channel"] = channels.astype(np.int32)
        for key in ("certificate", "energy_inside"):
            file[key] = rows[key]
        parts_of = (name for name in partial.names() if name.startswith("fields-"))
        store.fill(file, n, map(partial.load, parts_of))
    table = _columns(rows, top)
    if parts:
        table |= skip_residual.columns(rows, table["n_units"] > 0, reason)
    table = pd.DataFrame(table, index=channels).reindex(range(graph.shape(layer)[0]))
    table.insert(0, "layer", layer)
    table.insert(1, "channel", table.index)
    if parts:
        table["skip_reason"] = table["skip_reason"].fillna(skip_residual.LEFT_OUT)
    store.write_table(table, task.table)
    partial.finish()


def _batches(
    units: Units, cut: Window, size: int, parts: int
) -> Iterator[tuple[bool, list[np.ndarray]]]:
    """Yield batches (see `crops.batches`), each with whether the gradients of its units are split:
    those of the first `parts` ranks come first, in batches of their own."""
    for split in (True, False):
        rows = np.flatnonzero((units.rank < parts) == split)
        for rounds in crops.batches(units.take(rows), cut, size):
            yield split, [rows[round] for round in rounds]


def check_certificate(
    layer: str, channels: np.ndarray, certificate: np.ndarray, value: np.ndarray
) -> None:
    """Raise RfatlasError if activations (C, K) recomputed from crops are not the cached ones.

    `certificate` (C, K): |recomputed - cached|, NaN for places without a unit; `value` the cached;
    `channels` (C,) their numbers.
    """
    if np.isnan(certificate).all():
        return
    worst = np.unravel_index(np.nanargmax(certificate), certificate.shape)
    if certificate[worst] > _CERTIFICATE_LIMIT * np.abs(value).max():
        raise RfatlasError(
            f"layer {layer}, channel {channels[worst[0]]}: the activation recomputed from the crop "
            f"differs by {certificate[worst]:.3g} from the cached {value[worst]:.6g}; "
            "activations.h5 comes from other weights or images: delete it and rerun that stage"
        )


#: Columns of the table besides layer and channel; those of the part `skip_residual` follow.
COLUMNS = (
    "n_units", "certificate_max", "gradient_change", "energy_inside", "split_half", "erf_sigma",
    "erf_r2", "erf_fraction",
)  # fmt: skip


def _columns(
    rows: Mapping[str, np.ndarray], top: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    used = top["image"] >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(used, rows["certificate"] / np.abs(top["value"]), -np.inf).max(axis=1)
    own = {
        "n_units": used.sum(axis=1),
        "certificate_max": np.where(used.any(axis=1), relative, np.nan),
    }
    return own | {name: rows[name] for name in COLUMNS[len(own) :]}

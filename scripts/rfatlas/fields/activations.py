"""Stage `activations`: one forward pass per range of images; extremes, moments, per-image values.

Each layer has a `Summary`; `Summary.merge` puts ranges together. Values per image (maxima, means,
logits, features, maps) go straight to the file. Nothing here imports torch before a forward pass is
wanted: merging ranges starts in a fraction of a second.

A layer's output is (N, C, H, W) or, after global pooling, (N, C), which counts as H = W = 1. A unit
is one position of one channel in one image; "all units" of a channel are N * H * W values.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from rfatlas.errors import RfatlasError
from rfatlas.fields.summaries import NonFiniteError, Summary, as_maps
from rfatlas.files import jobs, store

if TYPE_CHECKING:
    import torch

    from rfatlas.network import model

STAGE = "activations"

_COPY_BYTES = 1 << 20
_F16_MAX = 65504.0


class RangePass:
    """The images [start, stop) of one run, taken in batch by batch, on their way to `file`.

    `shapes` maps each layer to the (C, H, W) of one image, `rectified` to whether it follows a
    ReLU; `outputs` maps `logits` and `features` to their lengths, as far as the model has them.
    """

    def __init__(
        self,
        file: h5py.File,
        start: int,
        stop: int,
        shapes: Mapping[str, tuple[int, int, int]],
        rectified: Mapping[str, bool],
        outputs: Mapping[str, int],
        top_k: int,
        keep_maps: Sequence[str] = (),
    ):
        import torch

        self.start, self.stop, self.position = start, stop, start
        self._file = file
        self.summaries = {
            layer: Summary(layer, *shape, rectified[layer], top_k, start, start)
            for layer, shape in shapes.items()
        }
        kinds: dict[str, tuple[tuple[int, ...], Any]] = {}
        for layer, shape in shapes.items():
            kinds[f"{layer}/image_max"] = kinds[f"{layer}/image_mean"] = shape[:1], np.float32
            if layer in keep_maps:
                kinds[f"{layer}/maps"] = shape, np.float16
        for name, length in outputs.items():
            kinds[f"output/{name}"] = (length,), np.float32
        self._rows = {
            name: file.create_dataset(name, (stop - start, *shape), dtype)
            for name, (shape, dtype) in kinds.items()
        }
        self._outputs = tuple(outputs)
        # A layer per thread: much of a summary is NumPy's work, which has one thread only.
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, "layer", torch.set_num_threads, (1,))

    def add(
        self, values: Mapping[str, "torch.Tensor"], outputs: Mapping[str, "torch.Tensor"]
    ) -> None:
        """Take in the next batch: the values of each layer, and logits and features (B, D).

        Raises NonFiniteError for a NaN or an infinity anywhere.
        """
        import torch

        first = self.position

        def summarise(layer: str) -> int:
            peak, mean = self.summaries[layer].update(values[layer], first)
            self._put(f"{layer}/image_max", peak)
            self._put(f"{layer}/image_mean", mean)
            if f"{layer}/maps" in self._rows:
                maps = as_maps(values[layer]).clamp(-_F16_MAX, _F16_MAX).to(torch.float16)
                self._put(f"{layer}/maps", maps.cpu().numpy())
            return len(peak)

        on_cpu = all(value.device.type == "cpu" for value in values.values())
        counts = list((self._pool.map if on_cpu else map)(summarise, self.summaries))
        for name in self._outputs:
            rows = outputs[name].float().cpu().numpy()
            bad = np.argwhere(~np.isfinite(rows))
            if len(bad):
                image, channel = bad[0]
                raise NonFiniteError(
                    f"output/{name}", int(channel), first + int(image), rows[image, channel]
                )
            self._put(f"output/{name}", rows)
        self.position += counts[0]

    def _put(self, name: str, values: np.ndarray) -> None:
        """Write the values (B, ...) of a batch to their rows."""
        row = self.position - self.start
        self._rows[name][row : row + len(values)] = values

    def finish(self, labels: np.ndarray, classes: int) -> None:
        """Write the summaries; `labels` i64 (images,) are those of [start, stop), -1 = unknown."""
        self._pool.shutdown()
        for summary in self.summaries.values():
            summary.write(self._file)
        self._file["output/labels"] = labels.astype(np.int64)
        _finish(self._file, list(self.summaries), classes)


def _finish(file: h5py.File, layers: Sequence[str], classes: int) -> None:
    """Derive class means and accuracy from the values per image that the file holds."""
    labels = file["output/labels"][:]
    for layer in layers:
        file[f"{layer}/class_mean"] = class_means(file[layer]["image_mean"], labels, classes)
    logits = file["output"].get("logits")
    file["output"].attrs.update(accuracy(np.zeros((0, 1)) if logits is None else logits, labels))


def _row_blocks(data: h5py.Dataset | np.ndarray) -> Iterator[slice]:
    row = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64)))
    step = max(1, _COPY_BYTES // row)
    for start in range(0, len(data), step):
        yield slice(start, min(start + step, len(data)))


def class_means(
    image_mean: h5py.Dataset | np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """Return f64 (classes, C): `image_mean` (N, C) averaged over the images of each class.

    NaN for classes without images; images of unknown class (-1) do not count.
    """
    sums = np.zeros((classes, image_mean.shape[1]))
    for block in _row_blocks(image_mean):
        known = labels[block] >= 0
        np.add.at(sums, labels[block][known], image_mean[block][known].astype(np.float64))
    count = np.bincount(labels[labels >= 0], minlength=classes)
    with np.errstate(invalid="ignore"):
        return sums / count[:, None]


def accuracy(logits: h5py.Dataset | np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `top1`, `top5` (fractions), `loss` (mean cross entropy, nats) and `labelled`.

    Over the `labelled` images whose class is known; NaN without any. Of equal logits, the one of
    the lower class goes first. With fewer than five classes `top5` is 1.
    """
    top1 = top5 = count = 0
    loss = 0.0
    for block in _row_blocks(logits):
        known = np.nonzero(labels[block] >= 0)[0]
        label = labels[block][known]
        values = logits[block][known].astype(np.float64)
        own = values[np.arange(len(label)), label][:, None]
        earlier = np.arange(values.shape[1]) < label[:, None]
        rank = ((values > own) | ((values == own) & earlier)).sum(1)
        top1 += int((rank < 1).sum())
        top5 += int((rank < 5).sum())
        peak = values.max(1, initial=-np.inf, keepdims=True)
        total = np.log(np.exp(values - peak).sum(1, keepdims=True)) + peak
        loss += float((total - own).sum())
        count += len(label)
    shares = [total / count if count else np.nan for total in (top1, top5, loss)]
    return dict(zip(("top1", "top5", "loss"), shares, strict=True)) | {"labelled": count}


# ---- the stage's two jobs


def compute(
    images: str | Path,
    weights: str | Path,
    output: str | Path,
    *,
    start: int,
    stop: int,
    layers: Sequence[str],
    top_k: int,
    batch_size: int = 64,
    keep_maps: Sequence[str] = (),
    device: str = "auto",
    tf32: bool = False,
) -> None:
    """Write the activations of the packed images [start, stop) to `output`.

    A `stop` beyond the last image is clipped, an empty range gives a file without images. Raises
    RfatlasError for activations that are not finite, for labels that the network's classifier does
    not have, and for unknown layers.
    """
    from rfatlas.network import devices, model

    with devices.acquire(device, tf32) as where, store.open(images, "images") as packed:
        loaded = model.load(weights, where)
        total = len(packed["images"])
        start, stop = min(start, total), min(stop, total)
        forward = Forward(loaded, layers)
        labels = packed["labels"][:]
        classes = _count_classes(packed, labels, forward.outputs.get("logits"))
        header = loaded.description
        config = {
            "layers": sorted(layers),
            "top_k": top_k,
            "keep_maps": sorted(keep_maps),
            "tf32": tf32,
            "model": {key: header[key] for key in ("factory", "kwargs", "input")},
            "range": [start, stop],
        }
        attrs = store.provenance(
            STAGE, config, loaded.weights_sha256, {"images": store.identity(images)}, str(where)
        )
        attrs |= {"start": start, "stop": stop, "total": total}
        with store.create(output, attrs) as file:
            run = RangePass(
                file,
                start,
                stop,
                forward.shapes,
                {layer: loaded.graph.rectified(layer) for layer in layers},
                forward.outputs,
                top_k,
                keep_maps,
            )
            with jobs.progress(total=stop - start, desc="images") as bar:
                while run.position < stop:
                    count = min(batch_size, stop - run.position)
                    try:
                        run.add(*forward(packed["images"][run.position : run.position + count]))
                    except NonFiniteError as error:
                        name = packed["names"].asstr()[error.image]
                        raise RfatlasError(f"{error}; image {error.image} is {name}") from None
                    bar.update(count)
            run.finish(labels[start:stop], classes)


class Forward:
    """The network as this stage wants it: packed images in, layers and outputs out.

    `shapes` maps each layer to the (C, H, W) of one image; `outputs` maps `logits` and `features`
    to their lengths, as far as the network has them and they are (N, D).
    """

    def __init__(self, loaded: "model.LoadedModel", layers: Sequence[str]):
        from rfatlas.network import devices, graph

        self._loaded, self._layers = loaded, tuple(layers)
        self._keys = {"logits": graph.LOGITS, "features": graph.FEATURES}
        self._extract = devices.channels_last(loaded.graph.extractor(self._layers), loaded.device)
        self.outputs = dict.fromkeys(self._keys, 0)
        crop = loaded.description["input"]["crop"]
        values, outputs = self(np.zeros((1, crop, crop, 3), np.uint8))
        self.shapes = {layer: tuple(as_maps(value).shape[1:]) for layer, value in values.items()}
        self.outputs = {
            name: value.shape[1]
            for name, value in outputs.items()
            if value is not None and value.ndim == 2
        }

    def __call__(
        self, images: np.ndarray
    ) -> tuple[dict[str, "torch.Tensor"], dict[str, "torch.Tensor"]]:
        """Return (values by layer, outputs by name) of images uint8 (B, H, W, 3)."""
        import torch

        with torch.inference_mode():
            values = self._extract(self._loaded.preprocess(images))
        return (
            {layer: values[layer] for layer in self._layers},
            {name: values.get(self._keys[name]) for name in self.outputs},
        )


def _count_classes(packed: h5py.File, labels: np.ndarray, logits: int | None) -> int:
    """Return the number of classes; raises RfatlasError for a label beyond it."""
    named = len(packed.attrs.get("class_names", ()))
    classes = logits or max(named, int(labels.max(initial=-1)) + 1)
    wrong = np.nonzero((labels < -1) | (labels >= classes))[0]
    if len(wrong):
        name = packed["names"].asstr()[wrong[0]]
        raise RfatlasError(
            f"{name}: label {labels[wrong[0]]} of {len(wrong)} image(s) like it is not among the "
            f"{classes} classes of the network; use 0 to {classes - 1}, or -1 for unknown"
        )
    return classes


def merge(ranges: Sequence[str | Path], output: str | Path) -> None:
    """Merge the files of consecutive ranges, in order, into `output`.

    The result is what one range over all images gives; memory does not grow with the number of
    ranges or images. Raises RfatlasError as `store.ranges` does.
    """
    with store.create(output, {}) as file:
        summaries: dict[str, Summary] = {}
        devices = set()
        for part in store.ranges(jobs.progress(ranges, unit="range", desc="ranges"), STAGE):
            attrs = dict(part.attrs)
            start, stop, total = (int(attrs[key]) for key in ("start", "stop", "total"))
            devices.add(attrs["device"])
            # A layer of the name `output` shares the group of the network's outputs.
            names = [name for name in part if "image_mean" in part[name]]
            for layer in names:
                summary = Summary.read(part[layer], start, stop)
                if layer in summaries:
                    summaries[layer].merge(summary)
                else:
                    summaries[layer] = summary
            classes = len(part[names[0]]["class_mean"])
            for name in _per_image(part, names):
                source = part[name]
                if name not in file:
                    file.create_dataset(name, (total, *source.shape[1:]), source.dtype)
                for block in _row_blocks(source):
                    file[name][start + block.start : start + block.stop] = source[block]
        config = json.loads(attrs.pop("config"))
        del config["range"], attrs["complete"]
        file.attrs.update(
            attrs,
            config=json.dumps(config, sort_keys=True),
            start=0,
            device=", ".join(sorted(devices)),
        )
        for summary in summaries.values():
            summary.write(file)
        _finish(file, names, classes)


def _per_image(part: h5py.File, layers: Sequence[str]) -> list[str]:
    """Return the names of the datasets that have one row per image."""
    names = [f"{layer}/{kind}" for layer in layers for kind in ("image_max", "image_mean", "maps")]
    names += [f"output/{kind}" for kind in ("labels", "logits", "features")]
    return [name for name in names if name in part]

"""The receptive field of a layer's units, as numbers."""

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Field:
    """What the units of one value see of the image."""

    #: The value's axes that run along y and x of the image; None where that is not known, which may
    #: be without `local` only.
    axes: tuple[int, int] | None = (2, 3)
    #: The receptive field through local and pointwise operations, global ones taken as constants;
    #: None where a unit has no place of its own in the image.
    local: Geometry | None = None
    #: Whether global operations let a unit see the whole image.
    whole: bool = False
    #: Whether the value can be computed for images of one size only.
    fixed: bool = False
    #: The operations on the way that were found out by trying, by name.
    probed: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`exact`: nothing outside the box counts; `local`: the box is what is left when global
        operations are taken as constants; `global`: there is no box."""
        return "global" if self.local is None else "local" if self.whole else "exact"

    @property
    def crops(self) -> bool:
        """Whether a part of the image that holds the box gives a unit's value exactly."""
        return self.kind == "exact" and not self.fixed

"""Import torchvision also where its compiled operators do not load.

A CPU build of torch beside a CUDA build of torchvision leaves two operators undeclared, and the
plain import fails. rfatlas never calls them; declaring their signatures is enough for models and
transforms to work.
"""

from types import ModuleType

_MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# Keeps the declarations alive: torch withdraws them when the library object is collected.
_declared = []


def torchvision() -> ModuleType:
    """Return the torchvision package, declaring its missing operators only if the plain import
    fails."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import sys

        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for signature in _MISSING:
            library.define(signature)
        _declared.append(library)
        import torchvision
    return torchvision

"""Stand-ins for data that are not at hand: an ImageNet validation set without its images.

Every file has its right name and place and the tables their right form, but the images are empty:
enough to list them and to rehearse a run, not to decode them.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import scipy.io

CLASSES = 1000


def imagenet(folder: Path, flat: int = 10000, archived: int = 1000) -> None:
    """Write `data/imagenet` below `folder` as config/imagenet.yaml and imagenet-small.yaml name it.

    `flat` empty images as files, `archived` in the archive, and the tables of both forms.
    """
    top = folder / "data" / "imagenet"
    kit = top / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (top / "val").mkdir()
    wnids = [f"n{10_000_000 + 7 * i}" for i in range(CLASSES)]

    names = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(max(flat, archived))]
    for name in names[:flat]:
        (top / "val" / f"{name}.JPEG").touch()
    with tarfile.open(top / "ILSVRC2012_img_val.tar", "w") as archive:
        for name in names[:archived]:
            info = tarfile.TarInfo(f"{name}.JPEG")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"\0"))

    rows = [f"{name},{wnids[i % CLASSES]} 1 2 3 4 " for i, name in enumerate(names)]
    (top / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows) + "\n")
    (top / "LOC_synset_mapping.txt").write_text(
        "".join(f"{wnid} thing {i}\n" for i, wnid in enumerate(wnids))
    )
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{i % CLASSES + 1}\n" for i in range(len(names)))
    )
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = [(i + 1, wnid, f"thing {i}", 0) for i, wnid in enumerate(wnids)]
    scipy.io.savemat(kit / "meta.mat", {"synsets": np.array(synsets, dtype=fields)[:, None]})

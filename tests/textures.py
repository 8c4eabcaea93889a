"""Make the textures of the stage `texture`: samples with the Portilla-Simoncelli statistics of some
pictures, in resources/textures/.

    python tests/textures.py FOLDER [FAMILY ...]

writes FOLDER/<family>.png for each family (its picture, then its samples); without families it
joins what the folder holds into resources/textures/textures.png. Needs plenoptic and scikit-image
(requirements-dev.txt). One seed per sample; on one machine the same pixels every time.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHEET = ROOT / "resources" / "textures" / "textures.png"

SIDE = 128
SAMPLES = 4

#: Root-mean-square contrast of the samples, as a share of the range of code values.
CONTRAST = 0.18

#: Steps of L-BFGS, ten evaluations each at most.
STEPS = 20


# ---- pictures


def photograph(name: str, shrink: int, top: int, left: int) -> np.ndarray:
    """A grey square of one of scikit-image's photographs, made smaller `shrink` times."""
    from skimage import data

    image = Image.fromarray(getattr(data, name)()).convert("L").reduce(shrink)
    return np.asarray(image, float)[top : top + SIDE, left : left + SIDE]


def _offsets(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y (n, SIDE, SIDE) of every pixel from each point (n, 2), around the torus."""
    pixel = np.arange(SIDE) + 0.5
    x = (pixel[None, None] - points[:, 0, None, None] + SIDE / 2) % SIDE - SIDE / 2
    y = (pixel[None, :, None] - points[:, 1, None, None] + SIDE / 2) % SIDE - SIDE / 2
    return np.broadcast_arrays(x, y)


def cracks(random: np.random.Generator) -> np.ndarray:
    """Dark borders of the cells of random points."""
    distance = np.sort(np.hypot(*_offsets(random.uniform(0, SIDE, (40, 2)))), axis=0)
    return np.minimum(distance[1] - distance[0], 4) + random.normal(0, 0.2, (SIDE, SIDE))


def pebbles(random: np.random.Generator) -> np.ndarray:
    """Cells of random points, each with a grey of its own, bright in the middle."""
    distance = np.hypot(*_offsets(random.uniform(0, SIDE, (70, 2))))
    near = np.sort(distance, axis=0)
    shade = 1 - (near[0] / near[1]) ** 2
    return random.uniform(0.4, 1, 70)[distance.argmin(0)] * np.sqrt(shade)


def leaves(random: np.random.Generator) -> np.ndarray:
    """Discs of many sizes, one over the other."""
    count = 1200
    inside = np.hypot(*_offsets(random.uniform(0, SIDE, (count, 2))))
    radius = 3 * (1 - random.uniform(0, 0.98, count)) ** -0.55
    on_top = count - 1 - (inside <= radius[:, None, None])[::-1].argmax(0)
    return random.uniform(0, 1, count)[on_top]


def bubbles(random: np.random.Generator) -> np.ndarray:
    """Bright rings of many sizes."""
    distance = np.hypot(*_offsets(random.uniform(0, SIDE, (45, 2))))
    radius = random.uniform(4, 15, 45)[:, None, None]
    return np.exp(-((distance - radius) ** 2) / 2).max(0)


def scratches(random: np.random.Generator) -> np.ndarray:
    """Thin strokes, bright and dark, in directions around one."""
    x, y = _offsets(random.uniform(0, SIDE, (110, 2)))
    angle = random.normal(0.6, 0.35, 110)[:, None, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    length = random.uniform(5, 22, 110)[:, None, None]
    stroke = np.exp(-(across**2) / 2) * (np.abs(along) < length)
    return (stroke * random.choice([-1, 1], 110)[:, None, None]).sum(0)


def scales(random: np.random.Generator) -> np.ndarray:
    """Rows of overlapping scales, each a little off its place."""
    step = 16
    rows = [
        ((column + 0.5 * (row % 2)) * step, row * step / 2)
        for row in range(2 * SIDE // step)
        for column in range(SIDE // step)
    ]
    places = np.array(rows) + random.normal(0, 0.8, (len(rows), 2))
    x, y = _offsets(places)
    distance = np.hypot(x, y)
    # The one above lies over the one below.
    front = np.where((distance <= 9.5) & (y > -9), y, np.inf).argmin(0)
    near = np.take_along_axis(distance, front[None], 0)[0]
    tone = random.uniform(0.7, 1, len(rows))[front]
    return tone * (1 - 0.8 * (near / 9.5) ** 4).clip(0)


def weave(random: np.random.Generator) -> np.ndarray:
    """Threads over and under each other."""
    pixel, period = np.arange(SIDE) + 0.5, 16
    wobble = [random.normal(0, 0.9, SIDE // period)[:, None] for _ in range(2)]
    along = [np.repeat(shift, period) for shift in wobble]
    y, x = np.meshgrid(pixel, pixel, indexing="ij")
    warp = np.abs(np.sin(np.pi * (x + along[0][None]) / period))
    weft = np.abs(np.sin(np.pi * (y + along[1][:, None]) / period))
    over = (x // period + y // period) % 2 == 0
    return np.where(over, warp, 0.75 * weft) + random.normal(0, 0.04, (SIDE, SIDE))


#: What each family's statistics are of. The photographs are CC0;
#: resources/textures/README.md names their makers.
FAMILIES = {
    "brick": lambda: photograph("brick", 3, 20, 20),
    "grass": lambda: photograph("grass", 2, 60, 60),
    "blades": lambda: photograph("grass", 1, 200, 200),
    "wood": lambda: photograph("coffee", 1, 272, 472),
    **{
        draw.__name__: lambda draw=draw, seed=seed: draw(np.random.default_rng(seed))
        for seed, draw in enumerate((cracks, pebbles, leaves, bubbles, scratches, scales, weave))
    },
}


# ---- synthesis


def equalised(image: np.ndarray) -> np.ndarray:
    """Code values in 0..1 around mid grey, of the contrast of all samples."""
    return (0.5 + CONTRAST * (image - image.mean()) / image.std()).clip(0, 1)


def sample(picture: np.ndarray, seed: int) -> np.ndarray:
    """Another picture of the same statistics, from noise."""
    import plenoptic
    import torch

    plenoptic.set_seed(seed)
    target = torch.tensor(picture, dtype=torch.float32)[None, None]
    model = plenoptic.models.PortillaSimoncelli(target.shape[-2:])
    loss = plenoptic.loss.portilla_simoncelli_loss_factory(model, target)
    metamer = plenoptic.Metamer(target, model, loss_function=loss)
    metamer.setup(
        (torch.rand_like(target) - 0.5) * 0.1 + target.mean(),
        optimizer=torch.optim.LBFGS,
        optimizer_kwargs={
            "max_iter": 10,
            "max_eval": 10,
            "history_size": 100,
            "line_search_fn": "strong_wolfe",
            "lr": 1,
        },
    )
    metamer.synthesize(max_iter=STEPS, stop_iters_to_check=STEPS)
    print(f"  seed {seed}, loss {metamer.losses[0]:.3g} to {metamer.losses[-1]:.3g}", flush=True)
    return metamer.metamer.detach().numpy()[0, 0]


def save(tiles: list[np.ndarray], path: Path) -> None:
    """Write pictures of code values in 0..1 side by side."""
    sheet = np.concatenate(tiles, 1)
    Image.fromarray(np.round(255 * sheet).astype(np.uint8)).save(path, optimize=True)


def main(folder: Path, families: list[str]) -> None:
    """Make the samples of some families, or the sheet of all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in families:
        picture = equalised(FAMILIES[name]())
        print(name, flush=True)
        samples = [equalised(sample(picture, seed)) for seed in range(SAMPLES)]
        save([picture, *samples], folder / f"{name}.png")
    if not families:
        rows = [np.asarray(Image.open(folder / f"{name}.png"))[:, SIDE:] for name in FAMILIES]
        Image.fromarray(np.concatenate(rows)).save(SHEET, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

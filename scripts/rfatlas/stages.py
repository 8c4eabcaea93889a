"""The register of stages: everything that more than one place needs to know about a stage.

A stage has one entry here, one rule file, one script, one module, one test file and one section of
the docs, all of the same name. What follows from an entry is derived from it and repeated nowhere:
the targets, the switches in the config, the order of columns, estimates, versions, the sections of
the atlas, the tables of stages in the docs.

Nothing here imports torch, numpy or pandas: the Snakefile reads this module while it builds the
graph of jobs.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A picture of a channel in the atlas."""

    #: Name of its tile (see `rfatlas.atlas.pictures`), caption, how to read it.
    name: str
    title: str
    note: str
    #: The picture that it is an outline on, from the columns <name>_x, <name>_y, ..., if it has no
    #: tile of its own.
    over: str = ""


@dataclass(frozen=True)
class Stage:
    """One analysis."""

    #: Name of its rule, script, module, test and docs section.
    name: str
    #: Heading in the atlas and the docs; one line on what it finds.
    title: str
    meaning: str
    #: What one job works on: "dataset", "run", "layer" or "group" (of compared runs).
    scope: str
    #: The stages whose files its jobs read, without what only `figures` and `atlas` need.
    reads: tuple[str, ...] = ()
    #: What its target makes, with wildcards; the other files of a job come with these.
    files: tuple[str, ...] = ()
    #: Why one would switch it off, if the config has `stages.<name>` and runs may go `without` it.
    off_when: str = ""
    #: The stage whose switch counts where its own is left out.
    like: str = ""
    #: Stages without a switch are on where one of these is (always, if there are none).
    follows: tuple[str, ...] = ()
    #: The stage whose jobs do its work and whose files hold it, if it has no jobs of its own; it is
    #: off where that stage is, and switching it makes that stage run again.
    part_of: str = ""
    #: Raised by hand when the same config gives other numbers than before; None for a cheap stage,
    #: which is run again whenever its code changes (see `rfatlas.files.versions`).
    version: int | None = None
    #: Megabytes that one of its jobs needs at most; 0 where it depends on the network.
    mem_mb: int = 1000
    #: Seconds of one of its jobs and bytes of its files, per channel (measured with `make demo` or
    #: a ResNet-18 at 224 px); nothing where `rfatlas.plan.estimates` has a formula.
    per_channel: tuple[float, float] = (0.0, 0.0)
    #: Whether it brings columns to channels.csv.
    columns: bool = False
    #: The column that says why a channel has no values of this stage.
    reason: str = ""
    #: What the atlas says for words in that column, and for "" where nothing else is known.
    reasons: tuple[tuple[str, str], ...] = ()
    #: The topic of the figures that show it: rule figures_<topic>.
    figures: str = ""
    #: What the atlas shows of it, channel by channel.
    pictures: tuple[Picture, ...] = ()
    #: Whether they are at the top of a passport, not in the section with the numbers.
    pictures_first: bool = False


_UNDRIVEN = ("no_response", "no grating takes it above its answer to grey")
_WEAK = ("weak", "its largest response is too small to measure")
_OUT_OF_RANGE = ("out_of_range", "it likes finer gratings than can be measured")


#: In the order of the work, which is also the order of the columns in channels.csv.
STAGES: tuple[Stage, ...] = (
    Stage(
        "scenes",
        "Scenes",
        "draws the labelled scenes of the demo",
        "dataset",
        files=("results/scenes/{dataset}/labels.csv",),
        version=2,
    ),
    Stage(
        "train_demo",
        "Training of the demo",
        "trains the networks that the demo ships",
        "dataset",
        files=(
            "results/train_demo/resnet_demo.safetensors",
            "results/train_demo/plainnet_demo.safetensors",
        ),
        version=2,
        mem_mb=3000,
    ),
    Stage(
        "images",
        "Images",
        "decodes, resizes and packs the photographs",
        "dataset",
        reads=("scenes",),
        files=("results/images/{dataset}_{resize}_{crop}{interpolation}.h5",),
        version=2,
        mem_mb=2000,
    ),
    Stage(
        "model",
        "Model",
        "loads the network and checks its weights",
        "run",
        reads=("images",),
        files=("results/{run}/model.safetensors",),
        version=3,
        mem_mb=3000,
    ),
    Stage(
        "activations",
        "Activations",
        "finds the units that each channel likes best, in one pass over all images",
        "run",
        reads=("images", "model"),
        files=("results/{run}/activations.h5",),
        version=1,
        mem_mb=0,
        figures="overview",
    ),
    Stage(
        "receptive_fields",
        "Receptive fields",
        "measures what the strongest units look at",
        "layer",
        reads=("images", "model", "activations"),
        files=("results/{run}/receptive_fields/{layer}.h5",),
        off_when="only activations are wanted; this takes long",
        version=3,
        mem_mb=3000,
        columns=True,
        figures="overview",
        pictures=(
            Picture("mean_image", "mean image", "Mean of what the top units looked at."),
            Picture(
                "effective",
                "effective RF",
                "Mean of |gradient| × image: the pixels that count, in their colours; black is 0.",
            ),
            Picture(
                "mean_gradient",
                "mean gradient",
                "How the activation rises with each pixel, mean over the top units; "
                "grey is 0, scaled to its own largest values.",
            ),
        ),
        pictures_first=True,
    ),
    Stage(
        "skip_residual",
        "Skip and residual",
        "splits gradients into the parts of skip connection and residual branch",
        "layer",
        off_when="the split is not wanted",
        part_of="receptive_fields",
        columns=True,
        reason="skip_reason",
        figures="virtual_filters",
        pictures=tuple(
            Picture(
                name,
                f"{name} part",
                f"The part of the mean gradient that comes through the {way}; "
                "both parts on one scale.",
            )
            for name, way in (("skip", "skip connection"), ("residual", "residual branch"))
        ),
    ),
    Stage(
        "virtual_filters",
        "Virtual filters",
        "composes first-layer kernels along the skip connections",
        "run",
        reads=("model", "receptive_fields"),
        files=("results/{run}/virtual_filters.h5", "results/{run}/virtual_filters.csv"),
        off_when="no virtual filters are wanted",
        version=2,
        mem_mb=3000,
        per_channel=(0.005, 2300),
        columns=True,
        reason="virtual_reason",
        figures="virtual_filters",
        pictures=(
            Picture(
                "virtual_filter",
                "virtual filter",
                "The first layer's kernels, composed through the skip connections alone.",
            ),
            Picture(
                "virtual_linear",
                "its linear response",
                "The exact linear response of that path.",
            ),
        ),
    ),
    Stage(
        "gabor",
        "Gabors",
        "fits Gabors to fields and kernels",
        "layer",
        reads=("model", "receptive_fields", "virtual_filters"),
        files=("results/{run}/gabor/{layer}.h5",),
        off_when="no Gabor parameters are wanted",
        like="receptive_fields",
        version=2,
        mem_mb=1500,
        per_channel=(0.014, 750),
        columns=True,
        reason="gabor_reason",
        reasons=(
            ("blob", "its field is a blob, which has no orientation"),
            ("ambiguous", "Gabors of other orientations fit its field about as well"),
            ("noise", "its field cannot be told from noise"),
            ("poor", "no Gabor explains a tenth of its field"),
            ("steep", "the best fit is near zero at every pixel"),
            ("weak", "its field is too weak to fit"),
            ("blank", "its field is constant"),
            ("small", "its field is smaller than 5 × 5 pixels"),
        ),
        figures="gabor",
        pictures=(
            Picture(
                "gabor",
                "its Gabor",
                "The Gabor fitted to the mean gradient: its envelope at one sigma, "
                "and a line along its bars.",
                over="mean_gradient",
            ),
        ),
        pictures_first=True,
    ),
    Stage(
        "gratings",
        "Gratings",
        "measures tuning to orientation, spatial frequency and phase",
        "layer",
        reads=("images", "model"),
        files=("results/{run}/gratings/{layer}.h5",),
        off_when="no tuning is wanted",
        version=3,
        mem_mb=3000,
        columns=True,
        reason="grating_reason",
        reasons=(_UNDRIVEN, _WEAK, _OUT_OF_RANGE),
        figures="gratings",
    ),
    Stage(
        "size",
        "Size",
        "finds the aperture that suits each channel, and its tuning to size",
        "layer",
        off_when="gratings as wide as the receptive field are enough",
        part_of="gratings",
        columns=True,
        reason="size_reason",
        reasons=(
            _UNDRIVEN,
            _WEAK,
            _OUT_OF_RANGE,
            ("small", "its field is too small to tell sizes apart"),
        ),
        figures="gratings",
    ),
    Stage(
        "contrast",
        "Contrast",
        "finds the contrast that suits each channel, its response to contrast and to a mask",
        "layer",
        off_when="gratings of full contrast are enough",
        part_of="gratings",
        columns=True,
        reason="contrast_reason",
        reasons=(
            _UNDRIVEN,
            _WEAK,
            _OUT_OF_RANGE,
            ("unsaturated", "no contrast comes near its maximum"),
            ("saturated", "the lowest contrast gives half of its maximum"),
        ),
        figures="gratings",
    ),
    Stage(
        "color",
        "Colour",
        "measures tuning to colour, and opponency",
        "layer",
        reads=("images", "model", "activations", "receptive_fields", "virtual_filters"),
        files=("results/{run}/color/{layer}.h5",),
        off_when="no colour tuning is wanted",
        version=3,
        mem_mb=3000,
        columns=True,
        reason="color_reason",
        reasons=(
            _UNDRIVEN,
            _WEAK,
            ("saturated", "the weakest luminance and colour shown saturate it"),
        ),
        figures="color",
        pictures=tuple(
            Picture(
                name,
                title,
                f"The mean gradient along the axis {title}, in its colours; grey is 0, "
                "the three maps on one scale.",
            )
            for name, title in (("dkl_lum", "L+M"), ("dkl_lm", "L−M"), ("dkl_s", "S−(L+M)"))
        ),
    ),
    Stage(
        "texture",
        "Texture",
        "measures responses to naturalistic textures and to noise of the same spectrum",
        "run",
        reads=("model",),
        files=("results/{run}/texture.h5", "results/{run}/texture.csv"),
        off_when="responses to textures are not wanted",
        like="gratings",
        version=1,
        mem_mb=3000,
        columns=True,
        reason="texture_reason",
        reasons=(
            ("no_response", "neither a texture nor noise takes it above its answer to grey"),
            _WEAK,
        ),
    ),
    Stage(
        "preferred_stimulus",
        "Preferred stimuli",
        "finds the inputs that drive each channel most and least",
        "layer",
        reads=("images", "model", "activations", "receptive_fields"),
        files=("results/{run}/preferred_stimulus/{layer}.h5",),
        off_when="no preferred stimuli are wanted; all channels of deep layers take long",
        version=2,
        mem_mb=3000,
        columns=True,
        reason="stimulus_reason",
        reasons=(
            ("not_measured", "it is not in the sample of channels (preferred_stimulus.channels)"),
            ("constant", "no stimulus changes its answer"),
            ("silent", "no stimulus drives it above 0"),
            ("no_photograph", "no photograph drives it above 0"),
        ),
        figures="preferred_stimulus",
        pictures=(
            Picture("stimulus", "preferred stimulus", "The input found to drive the unit most."),
            Picture(
                "off_stimulus",
                "least preferred stimulus",
                "The input found to suppress the unit most.",
            ),
        ),
        pictures_first=True,
    ),
    Stage(
        "ablation",
        "What the network loses without it",
        "replaces channels one by one and counts what is lost",
        "layer",
        reads=("images", "model", "activations"),
        files=("results/{run}/ablation/{layer}.h5",),
        off_when="only tuning is wanted; on a large data set this takes long",
        version=2,
        mem_mb=4000,
        columns=True,
        reasons=(("", "this layer or channel is not among those that were ablated"),),
        figures="ablation",
    ),
    Stage(
        "channels",
        "Channels",
        "joins all columns into one table, a row per channel",
        "run",
        reads=("images", "model", "activations"),
        files=("results/{run}/channels.csv",),
        per_channel=(0.0005, 600),
    ),
    Stage(
        "orientation",
        "Orientation",
        "counts orientation-selective channels and compares the estimates",
        "run",
        reads=("channels",),
        files=tuple(
            f"results/{{run}}/orientation/{name}.csv" for name in ("agreement", "selective")
        ),
        follows=("gabor", "gratings"),
        figures="orientation",
    ),
    Stage(
        "v1",
        "Macaque V1",
        "compares the layers with the primary visual cortex of macaques",
        "run",
        reads=("channels",),
        files=tuple(
            f"results/{{run}}/v1/{name}.csv"
            for name in ("histograms", "properties", "scores", "scales")
        ),
        follows=("gabor", "gratings"),
        figures="orientation",
    ),
    Stage(
        "opponency",
        "Opponency",
        "counts opponent channels by several rules",
        "run",
        reads=("channels",),
        files=tuple(
            f"results/{{run}}/opponency/{name}.csv"
            for name in ("confusion", "stability", "counts", "macaque", "orientation")
        ),
        follows=("color",),
    ),
    Stage(
        "ablation_groups",
        "Groups of channels",
        "replaces groups of channels, and more and more of them",
        "layer",
        reads=("images", "model", "activations", "channels"),
        files=(
            "results/{run}/ablation_groups.csv",
            "results/{run}/ablation_cumulative.csv",
            "results/{run}/inactive_first_layer.csv",
        ),
        follows=("ablation",),
        version=2,
        mem_mb=3000,
    ),
    Stage(
        "compare",
        "Comparison",
        "compares networks: accuracy, matched channels, similarity",
        "group",
        reads=("model", "activations", "channels"),
        files=tuple(
            f"results/compare/{{group}}/{name}.csv"
            for name in ("runs", "fractions", "quantities", "matched", "matching", "similarity")
        ),
        mem_mb=0,
    ),
    Stage(
        "findings",
        "Findings",
        "answers the paper's claims in numbers",
        "run",
        reads=("model", "orientation", "v1", "opponency", "ablation_groups"),
        files=("results/{run}/findings.json", "results/{run}/findings.html"),
        follows=("gratings", "color", "ablation"),
    ),
    Stage(
        "figures",
        "Figures",
        "draws the figures of the report",
        "run",
        off_when="only tables are wanted",
        mem_mb=2000,
    ),
    Stage(
        "atlas",
        "Atlas",
        "makes the site of each run",
        "run",
        files=("results/{run}/atlas", "results/index.html"),
        off_when="only tables and figures are wanted; thousands of channels take a few minutes",
        mem_mb=1500,
        per_channel=(0.02, 30e3),
    ),
)

BY_NAME = {stage.name: stage for stage in STAGES}


def switches() -> list[str]:
    """Names of the stages that the config can switch off."""
    return [stage.name for stage in STAGES if stage.off_when]


def target(name: str) -> str:
    """Name of the target that makes a stage for all runs (and layers)."""
    return f"all_{name}" if BY_NAME[name].scope == "layer" else name


def with_columns() -> list[str]:
    """Names of the stages whose tables bring columns to channels.csv, in their order; the columns
    of a part are in the table of its stage."""
    return [stage.name for stage in STAGES if stage.columns and not stage.part_of]


def pages() -> list[dict[str, Any]]:
    """What the page of the atlas is told of the stages with columns, as JSON holds it."""
    return [
        {
            "name": stage.name,
            "title": stage.title,
            "reason": stage.reason,
            "reasons": dict(stage.reasons),
            "pictures": [asdict(picture) for picture in stage.pictures],
            "first": stage.pictures_first,
        }
        for stage in STAGES
        if stage.columns
    ]


def drawn_by(topic: str) -> list[str]:
    """Names of the stages that a topic of figures shows."""
    return [stage.name for stage in STAGES if stage.figures == topic]


def readers(name: str) -> list[str]:
    """Names of the stages whose jobs read what stage `name` writes.

    `channels` reads every stage that brings columns; `figures` and `atlas` read results of all.
    """
    columns = [name] if name in with_columns() else []
    return [
        stage.name
        for stage in STAGES
        if name in stage.reads or (stage.name == "channels" and columns)
    ]

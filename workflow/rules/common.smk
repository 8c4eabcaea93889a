# What all stages share: the checked config, the facts about models and data sets, and
# the functions that name files. Reads: config, the factory and weights files that it names, the
# lists of images. Writes nothing but a cache below .snakemake/rfatlas.
import atexit
import csv
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The library lies two folders above this file, also where this workflow is a module of another. It
# goes before an rfatlas that is installed from another checkout, in jobs as well.
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=False)).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.environ.update(
    PYTHONPATH=os.pathsep.join([str(ROOT / "scripts"), *filter(None, [os.getenv("PYTHONPATH")])])
)

# Where the C library is glibc, jobs keep the memory that a batch of images frees for the next one.
# By default it goes back to the system, which clears each page anew: a tenth of a forward pass.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**28))

# Threads of OpenMP that wait for each other sleep. By default they spin, on cores that other jobs or
# other people's work could use, and on a busy machine for many times as long as the work takes.
# Each job has as many as it was given: Snakemake sets OMP_NUM_THREADS. (libgomp; Intel's library.)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")

# Jobs write no lines of their own where a logger draws on the terminal, such as --logger rich.
if any(handler.writes_to_stream for handler in workflow.logger_manager.plugin_handlers):
    os.environ.update(RFATLAS_DRAWN="1")

from rfatlas import stages
from rfatlas.plan import config as rfatlas_config
from rfatlas.files import paths, versions
from rfatlas.plan import entries, estimates, preflight
from rfatlas.errors import RfatlasError
from rfatlas.sources import catalogue

# The config checked and filled in, with its models described and its images counted.
try:
    for file in workflow.configfiles:
        rfatlas_config.check_file(file)
    plan = preflight.prepare(rfatlas_config.load(config), config)
except RfatlasError as error:
    raise WorkflowError(str(error)) from None

settings = plan.config


def run_names():
    """The runs of the config, sorted."""
    return sorted(settings["runs"])


def model_config(run):
    """The entry of `models:` that a run uses."""
    return settings["models"][settings["runs"][run]["model"]]


def network_name(run):
    """What pages call the network of a run: its factory, behind the name that one such as timm's
    takes."""
    found = model_config(run)
    name, factory = found["kwargs"].get("model_name"), found["factory"]
    return f"{name} ({factory})" if name else factory


def run_dataset(run):
    """Name of the data set of a run."""
    return settings["runs"][run]["dataset"]


def description(run):
    """What `results/<run>/model.json` will hold, less the filter norms."""
    return plan.descriptions[settings["runs"][run]["model"]]


def run_layers(run):
    """Names of the layers that a run analyses, in the order of the network."""
    asked = model_config(run)["layers"]
    if asked == "default":
        return list(description(run)["default_layers"])
    return [layer["name"] for layer in description(run)["layers"] if layer["name"] in asked]


def run_images(run):
    """The packed images that a run looks at."""
    shown = description(run)["input"]
    sides = shown["resize"] if isinstance(shown["resize"], list) else [shown["resize"] or "none"]
    resize = "x".join(map(str, sides))
    method = "" if shown["interpolation"] == "bilinear" else f"_{shown['interpolation']}"
    return f"results/images/{packed_name(run_dataset(run), resize, shown['crop'], method)}.h5"


def packed_name(dataset, resize, crop, interpolation):
    """The name of a file of packed images, from its wildcards."""
    return f"{dataset}_{resize}_{crop}{interpolation}"


def listed_dataset(dataset):
    """What defines the listing of a data set: its config and, where labels depend on them, the
    numbers of classes of the networks that look at it."""
    found, classes = settings["datasets"][dataset], plan.images[dataset].classes
    return catalogue.used_keys(found) | ({"classes": classes} if classes else {})


def packed_files(dataset):
    """The files that tell of a data set's images: of scenes drawn here, else those of the user."""
    files = catalogue.input_files(settings["datasets"][dataset], dataset)
    drawn = settings["datasets"][dataset]["source"] == "scenes"
    return files if drawn else {name: in_place(file) for name, file in files.items()}


def image_ranges(run, stage):
    """Ranges [(start, stop), ...] of places in the order of the images of a run, a job each; one
    where channels may stop early, since that depends on all images before."""
    asked, count = settings[stage], plan.images[run_dataset(run)].count
    count = min(count, asked.get("images") or count)
    size = asked["range_size"] if asked.get("precision") is None else count
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def batch_norm_images(run):
    """The images on which a random network's batch norm is estimated; none for a trained one."""
    return run_images(run) if model_config(run)["weights"].startswith("random:") else []


def in_place(file):
    """A file of the checkout or of the user: with a storage below a prefix (an object store) it is
    still read where it is, by a job on the machine that Snakemake runs on. Absolute, since the
    prefix of a module is for results."""
    file = os.path.abspath(file)
    return local(file) if workflow.storage_settings.default_storage_prefix else file


def group_in_place(name):
    """The group of a small job that reads such files: none with such a storage, since the others of
    the group run elsewhere."""
    return None if workflow.storage_settings.default_storage_prefix else name


def model_files(run):
    """The files of the user that a run's network is made from: its factory, with what that imports,
    and its weights."""
    weights = paths.weights_file(model_config(run)["weights"])
    files = list(description(run)["imports"]) + ([weights] if weights else [])
    return [in_place(file) for file in files]


def without(section, *keys):
    """A section of the config without some of its keys."""
    return {key: value for key, value in section.items() if key not in keys}


def bad_image_labels(wildcards):
    """What the report says of a table of skipped files; how many, once the images are packed."""
    table = Path("results", "images", f"{packed_name(**wildcards)}_bad.csv")
    count = "not known yet"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            count = len(list(csv.DictReader(file)))
    return {"data set": wildcards.dataset, "pixels": wildcards.crop, "skipped files": count}


def stage_files(name):
    """What a stage makes, also of one that is switched off, which can be asked for by its name."""
    stage = stages.BY_NAME[name]
    if name == "images":
        return sorted({run_images(run) for run in run_names()})
    if name == "figures":
        return figure_folders()
    if stage.scope in ("dataset", "group"):
        used = entries.used(settings, "dataset")
        drawn = [each for each in used if settings["datasets"][each]["source"] == "scenes"]
        return expand(stage.files, dataset=drawn, group=compare_groups())
    runs = [run for run in stage_runs(name) if name not in settings["runs"][run]["without"]]
    return sorted({file for run in runs for file in run_files(name, run)})


def run_files(name, run):
    """What a stage makes of a run."""
    return [
        file.format(run=run, layer=layer)
        for file in stages.BY_NAME[name].files
        for layer in (stage_layers(run, name) if "{layer}" in file else [None])
    ]


def stage_runs(name):
    """The runs that a stage can work on."""
    follows = stages.BY_NAME[name].follows
    if (follows or (name,)) == ("ablation",):
        return ablation_runs()
    return runs_with(name) if follows else run_names()


def ablation_runs():
    """The runs whose channels are taken out: they have a classifier and labels."""
    return [run for run in runs_with("ablation") if not preflight.no_ablation(plan, run)]


def ablation_modes(run):
    """The modes that some layer of a run is ablated in, in the order of the columns."""
    every = any(
        layer in settings["ablation"]["all_modes_layers"] for layer in stage_layers(run, "ablation")
    )
    modes = ["zero", "mean", "shuffle"]
    return [mode for mode in modes if every or mode in settings["ablation"]["modes"]]


def estimated(run):
    """Whether first-order estimates of all images of a run join the effects on the exact ones."""
    asked, count = settings["ablation"], plan.images[run_dataset(run)].count
    return asked["estimate"] and bool(asked["precision"] or (asked["images"] or count) < count)


def estimate_files(run):
    """The first-order estimates of a run, a file for each range of images; none without."""
    ranges = image_ranges(run, "activations") if estimated(run) else []
    return [f"results/{run}/ablation_estimates/{start}-{stop}.h5" for start, stop in ranges]


def stage_layers(run, stage):
    """The layers of a run that a stage has a table of."""
    if stage not in ("ablation", "ablation_groups"):
        return run_layers(run)
    asked = [settings[section]["layers"] for section in ("ablation", stage)]
    return [
        layer
        for layer in run_layers(run)
        if run in ablation_runs() and all(only is None or layer in only for only in asked)
    ]


def column_files(run, suffix):
    """The tables ("csv") or fields ("h5") of a run by stage, of those that bring columns, in their
    order."""
    found = {}
    for name in stages.with_columns():
        stems = [os.path.splitext(file)[0] for file in run_files(name, run)]
        if stage_on(name, run):
            found[name] = [f"{stem}.{suffix}" for stem in dict.fromkeys(stems)]
    return found


def finding_tables(run, stage, name):
    """The table of a stage that a run's findings rest on; none where the stage is off for it."""
    files = run_files(stage, run) if run in stage_runs(stage) else []
    return [file for file in files if Path(file).stem == name]


def figure_folders():
    """All folders of figures: of each run by topic, of groups of runs, and of all runs."""
    found = {
        f"results/{run}/figures/{stage.figures}"
        for stage in stages.STAGES
        for run in stage_runs(stage.name)
        if stage.figures and stage_on(stage.name, run) and stage_on("figures", run)
    }
    found |= {f"results/compare/{group}/figures" for group in compare_groups()}
    return sorted(found | ({"results/figures"} if len(run_names()) > 1 else set()))


def figure_labels(wildcards):
    """What the report says of a figure, as its file is called: a title, or <depth>_<layer>."""
    depth, _, layer = wildcards.figure.partition("_")
    name = f"{depth} {layer}" if depth.isdigit() else wildcards.figure.replace("_", " ")
    if "group" in wildcards.keys():
        return {"group": wildcards.group, "shows": name}
    return {"run": wildcards.get("run", "all"), "shows": name}


def figure_folder(folder, topic, category, subcategory="{run}"):
    """An output: a folder of figures, all of which the report shows."""
    return report(
        directory(folder),
        patterns=["{figure}.png"],
        caption=f"../report/figures_{topic}.rst",
        category=category,
        subcategory=subcategory,
        labels=figure_labels,
    )


def sheets(topic):
    """What the script is told of a topic of a run with sheets of channels, a layer each."""
    return {
        "topic": f"figures_{topic}",
        "code": versions.digest(f"rfatlas.figures.figures_{topic}"),
        "run": "{run}",
        "layers": lambda wildcards: run_layers(wildcards.run),
        "channels": settings["figures"]["channels"],
    }


def compare_groups():
    """The groups of runs to compare: their runs by name, the reference first."""
    return settings["compare"]["groups"]


def atlas_stages(run):
    """What the atlas of a run says of each stage that brings columns; `absent` is why it has
    nothing of it, if so."""
    found = []
    for told in stages.pages():
        name, absent = told["name"], ""
        whole = stages.BY_NAME[name].part_of
        name = whole if whole and not stage_on(whole, run) else name
        if name in settings["runs"][run]["without"]:
            absent = f"this run goes without it (runs.{run}.without in the config)"
        elif not stage_on(name, run):
            absent = f"it is switched off (stages.{name} in the config)"
        elif run not in stage_runs(name):
            absent = preflight.no_ablation(plan, run)
        found.append({**told, "absent": absent})
    return found


def atlas_groups(run):
    """The groups of networks side by side that a run is in."""
    return [group for group, runs in compare_groups().items() if run in runs]


def stage_on(name, run=None):
    """Whether a stage is part of the plain `snakemake` call, and that run takes part in it."""
    return entries.stage_on(settings, name, run)


def runs_with(stage):
    """The runs that take part in a stage, sorted."""
    return [run for run in run_names() if stage_on(stage, run)]


def twin(run, stages=()):
    """The run with random weights to compare a run with, or None; also where the twin goes without
    one of these stages that the run takes part in."""
    other = entries.twin(settings, run)
    if other and any(stage_on(stage, run) and not stage_on(stage, other) for stage in stages):
        return None
    return other


def asks(script, runtime=None, gpu=0):
    """What a job of a script asks for: minutes by the estimates if `runtime` is not given. A retry
    (`--retries`) asks for the double, then the triple; its script reads how many there were."""

    def name(wildcards):
        if script == "images":
            return packed_name(**wildcards)
        return wildcards.get("run") or "_".join(wildcards)

    def memory(wildcards, attempt):
        return attempt * budget.mem_mb(script, name(wildcards))

    def minutes(wildcards, attempt):
        layer = wildcards.get("layer")
        return attempt * (runtime or budget.minutes(script, name(wildcards), layer))

    return {
        "mem_mb": memory,
        "runtime": minutes,
        "gpu": gpu,
        "attempt": lambda wildcards, attempt: attempt,
    }


def network_threads(wildcards):
    """Threads of a job that runs a network: where more would wait for each other, more jobs run
    side by side instead."""
    return budget.threads(wildcards.run)


def when(condition, file):
    """What is there only under a condition, such as an input file."""
    return file if condition else []


def where_on(stage, file):
    """An input function: a file of a stage, of runs that take part in it."""
    return lambda wildcards: when(stage_on(stage, wildcards.run), file)


def layer_files(stage, optional=False, suffix="h5"):
    """An input function: the files of a stage of all layers of a run; of an optional stage only
    where it is on."""

    def files(wildcards):
        run = wildcards.run
        layers = [] if optional and not stage_on(stage, run) else stage_layers(run, stage)
        return [f"results/{run}/{stage}/{layer}.{suffix}" for layer in layers]

    return files


def twin_table(*names):
    """An input function: channels.csv of the twin that a run is compared with; none where the twin
    lacks one of these stages."""

    def table(wildcards):
        other = twin(wildcards.run, names)
        return when(other, f"results/{other}/channels.csv")

    return table


def tables_in_report(category):
    """A function that puts a table (its file, what it shows) into the report, under the run or group
    that the file's name has a wildcard for and with the caption of its name."""

    def table(file, shows):
        of = "group" if "{group}" in file else "run"
        parts = Path(file).with_suffix("").parts[1:]
        return report(
            file,
            caption=f"../report/{'_'.join(part for part in parts if '{' not in part)}_table.rst",
            category=category,
            subcategory=f"{{{of}}}",
            labels={of: f"{{{of}}}", "shows": f"{shows} (table)"},
        )

    return table


def gpus():
    """GPUs that a job with a network asks for: with device auto, one if this machine has any."""
    if settings["device"] == "auto":
        return int(os.path.exists(os.path.join(os.sep, "dev", "nvidia0")))
    return int(settings["device"].startswith("cuda"))


def one_of(names):
    """A wildcard constraint that allows exactly these names."""
    return "|".join(re.escape(name) for name in sorted(set(names), key=lambda n: (-len(n), n)))


wildcard_constraints:
    run=one_of(settings["runs"]),
    dataset=one_of(settings["datasets"]),
    layer=one_of(layer for run in settings["runs"] for layer in run_layers(run)),
    resize=r"none|\d+|\d+x\d+",
    crop=r"\d+",
    interpolation=r"|_(nearest|box|hamming|bicubic|lanczos)",
    start=r"\d+",
    stop=r"\d+",


budget = estimates.Budget(
    plan,
    {run: run_layers(run) for run in run_names()},
    cores=workflow.resource_settings.cores or os.cpu_count(),
    gpus=gpus(),
)

if workflow.is_main_process:
    for note in plan.notes:
        print(f"rfatlas: {note}", file=sys.stderr)
    for run in runs_with("ablation"):
        if reason := preflight.no_ablation(plan, run):
            print(f"rfatlas: no ablation of run {run}: {reason}", file=sys.stderr)


def announce(say):
    """Say what the jobs that will run cost; RfatlasError if the disk is too small for them."""
    rows = budget.rows(workflow.dag.needrun_jobs(exclude_finished=False))
    say(budget.table(rows))
    # Where results go to a storage, this disk holds a few of them at a time.
    if workflow.storage_settings.default_storage_provider is None:
        estimates.check_disk(rows, Path.cwd())


@atexit.register
def rehearsed():
    """Announce what a dry run would do, for which Snakemake calls no hook."""
    if workflow.dryrun and workflow.dag and len(workflow.dag):
        try:
            announce(lambda text: print(text, file=sys.stderr))
        except RfatlasError as error:
            print(f"rfatlas: {error}", file=sys.stderr)

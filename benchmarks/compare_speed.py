"""cnnlab against an ordinary Keras script on the same data: seconds and peak memory of whole processes, as ratios.

    python benchmarks/compare_speed.py DATASET --limit 5000                  # minutes
    python benchmarks/compare_speed.py DATASET --weights FILE --repeats 3    # all of CIFAR-10: hours

In every repeat the script and cnnlab run in turn. cnnlab does more in its time: tracking, plots, confusion matrices,
model logging. Ratios are of one repeat, printed as median (smallest to largest).
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

SCRIPT = Path(__file__).with_name("plain_script.py")
RECIPES = 10
SAMPLING = 0.25  # seconds between two looks at the memory
# In one process, as a user's own loop would.
TEN_RECIPES = """
import sys
from cnnlab.utils.startup import job
with job():
    import cnnlab
    options = dict(option.split("=", 1) for option in sys.argv[1:])
    typed = {"limit": int, "epochs": int, "val_fraction": float, "seed": int}
    options = {name: typed.get(name, str)(value) for name, value in options.items()}
    rates = [1e-4 * 1.2**i for i in range(%d)]
    cnnlab.compare_models([cnnlab.Recipe(model="vgg16", learning_rate=rate, **options) for rate in rates])
""" % (RECIPES,)  # noqa: UP031  an f-string would need its braces doubled
LOADING = """
import sys, time
from cnnlab import load_dataset
started = time.perf_counter()
load_dataset(sys.argv[1], val_fraction=0, limit=int(sys.argv[2]) if len(sys.argv) > 2 else None)
print(time.perf_counter() - started)
"""


@dataclass(frozen=True)
class Measured:
    """A finished process: wall `seconds`, `peak` bytes of it and its children together, and what it printed."""

    seconds: float
    peak: int
    output: str


def measure(arguments, folder, cache) -> Measured:
    """Run Python with `arguments` in `folder`; raises `SystemExit` with its output where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CNNLAB_CACHE": str(cache), "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "output.txt").open("w+") as output:
        started = time.perf_counter()
        process = psutil.Popen(
            [sys.executable, *map(str, arguments)], cwd=folder, env=environment, stdout=output, stderr=output
        )
        peak = 0
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, memory_of(process))
            time.sleep(SAMPLING)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{text}")
    return Measured(seconds, peak, text)


def memory_of(process) -> int:
    """Bytes of a process and of what its children do not share with others.

    Counters that the kernel keeps anyway: walking through the processes' memory maps would stop them while it is done.
    """
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = child.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    return total


def runs_of(folder) -> dict:
    """What the tracked training runs in `folder` say: summed train_seconds, and the test accuracy of each model."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`cnnlab.kind` = 'train'")
    return {
        "train_seconds": sum(run.data.metrics["train_seconds"] for run in runs),
        "accuracy": {run.data.params["model"]: run.data.metrics["test_accuracy"] for run in runs},
    }


OUTSIDE = ("cnn", "vgg16 warm", "ten vgg16")
# Title, the script's job and how often it counts, cnnlab's job.
PAIRS = (
    ("whole job, both models", "both", 1, "both"),
    ("CNN alone", "cnn", 1, "cnn"),
    ("VGG16, empty cache", "vgg16", 1, "vgg16 cold"),
    ("VGG16, features cached", "vgg16", 1, "vgg16 warm"),
    (f"{RECIPES} VGG16 recipes in a row", "vgg16", RECIPES, "ten vgg16"),
)


def run_script(dataset, options, root) -> dict:
    """The script with both models: `seconds` by job, `peak` bytes, and the test `accuracy` of each model.

    It is run once: what one model alone takes is the whole less the seconds of the other one.
    """
    arguments = [SCRIPT, dataset, *(f"--{name}={value}" for name, value in options.items())]
    both = announced("script", measure(arguments, root, root))
    models = json.loads(both.output.splitlines()[-1])
    seconds = {
        "both": both.seconds,
        "cnn": both.seconds - models["vgg16"]["seconds"],
        "vgg16": both.seconds - models["cnn"]["seconds"],
    }
    print(f"    of it cnn alone {seconds['cnn']:.1f} s, vgg16 alone {seconds['vgg16']:.1f} s", flush=True)
    accuracy = {model: values["accuracy"] for model, values in models.items()}
    return {"seconds": seconds, "peak": both.peak, "accuracy": accuracy}


def run_cnnlab(dataset, options, root) -> dict:
    """cnnlab's jobs, each `Measured`, in stores and caches of their own under `root`."""
    options = {**options, "dataset": dataset, "val_fraction": 0}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    for_cnn = [option for option in given if not option.startswith("--weights")]
    vgg16 = ["-m", "cnnlab", "train", "vgg16", *given]
    jobs = {
        "both": (["-m", "cnnlab", "compare", *given], "cache-both"),
        "cnn": (["-m", "cnnlab", "train", "cnn", *for_cnn], "cache-cnn"),
        "vgg16 cold": (vgg16, "cache-vgg16"),
        "vgg16 warm": (vgg16, "cache-vgg16"),
        "ten vgg16": (["-c", TEN_RECIPES, *(f"{name}={value}" for name, value in options.items())], "cache-ten"),
    }
    name = f"cnnlab {options['precision']} "
    return {
        job: announced(name + job, measure(arguments, root / job, root / cache))
        for job, (arguments, cache) in jobs.items()
    }


def announced(job, measured):
    print(f"  {job:34} {measured.seconds:8.1f} s  {measured.peak / 1e9:5.2f} GB", flush=True)
    return measured


def spread(values, text="{:.2f}") -> str:
    """Median, and smallest to largest, of one value a repeat."""
    values = sorted(values)
    parts = (text.format(value) for value in (statistics.median(values), values[0], values[-1]))
    return "{} ({} to {})".format(*parts)


def report(precision, repeats) -> None:
    """Print the ratios of one precision; `repeats` holds a dict for each, made in `main`."""
    print(f"\n== cnnlab in {precision} against the script in float32")
    print("times as fast as the script")
    for title, script, times, ours in PAIRS:
        ratios = [times * r["script"]["seconds"][script] / r["cnnlab"][ours].seconds for r in repeats]
        note = f"  (the script's VGG16 job counted {times} times)" if times > 1 else ""
        print(f"  {title:28} {spread(ratios)}{note}")
    print("peak memory as a share of the script's with both models")
    for title, _, _, ours in PAIRS:
        print(f"  {title:28} {spread([r['cnnlab'][ours].peak / r['script']['peak'] for r in repeats])}")
    print("seconds outside fit and the pass through the frozen layers")
    outside = {job: [r["cnnlab"][job].seconds - r["train_seconds"][job] for r in repeats] for job in OUTSIDE}
    loading = [r["loading"] for r in repeats]
    further = [
        (ten - one) / (RECIPES - 1) for ten, one in zip(outside["ten vgg16"], outside["vgg16 warm"], strict=True)
    ]
    for title, seconds in (
        ("CNN, data loading aside", [all_ - data for all_, data in zip(outside["cnn"], loading, strict=True)]),
        ("VGG16, data loading aside", [all_ - data for all_, data in zip(outside["vgg16 warm"], loading, strict=True)]),
        ("data loading", loading),
        ("each further recipe", further),
    ):
        print(f"  {title:28} {spread(seconds, '{:.1f}')}")
    print("test accuracy, cnnlab's minus the script's, in points")
    for model in ("cnn", "vgg16"):
        pairs = [(r["accuracy"][model], r["script"]["accuracy"][model]) for r in repeats]
        means = [statistics.mean(values) for values in zip(*pairs, strict=True)]
        points = spread([100 * (a - b) for a, b in pairs])
        print(f"  {model:28} {points}  means {means[0]:.2%} and {means[1]:.2%}")


@click.command()
@click.argument("dataset")
@click.option("--limit", type=int, help="Training images; a fifth as many test images.")
@click.option("--weights", default="imagenet", show_default=True, help="imagenet, random or a weights file.")
@click.option("--epochs", default=5, show_default=True)
@click.option(
    "--precision", "precisions", multiple=True, default=["float32"], help="cnnlab's; may be given several times."
)
@click.option("--repeats", default=3, show_default=True, help="Each with a seed of its own.")
def main(dataset, limit, weights, epochs, precisions, repeats):
    if Path(dataset).exists():
        dataset = str(Path(dataset).resolve())
    weights = str(Path(weights).resolve()) if Path(weights).exists() else weights
    done = {precision: [] for precision in precisions}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            root = Path(folder, str(i))
            options = {"weights": weights, "epochs": epochs, "seed": i, **({"limit": limit} if limit else {})}
            print(f"repeat {i + 1} of {repeats}", flush=True)
            script = run_script(dataset, options, root / "script")
            arguments = ["-c", LOADING, dataset, *([limit] if limit else [])]
            loading = float(measure(arguments, root / "loading", root).output.splitlines()[-1])
            for precision in precisions:
                place = root / precision
                cnnlab = run_cnnlab(dataset, {**options, "precision": precision}, place)
                done[precision].append(
                    {
                        "script": script,
                        "cnnlab": cnnlab,
                        "loading": loading,
                        "accuracy": runs_of(place / "both")["accuracy"],
                        "train_seconds": {job: runs_of(place / job)["train_seconds"] for job in OUTSIDE},
                    }
                )
    for precision in precisions:
        report(precision, done[precision])


if __name__ == "__main__":
    main()

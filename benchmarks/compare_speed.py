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
# In one process, as a user's own loop would.
TEN_RECIPES = """
import sys
from cnnlab.cli import job
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
                peak = max(peak, sum(p.memory_info().rss for p in (process, *process.children(recursive=True))))
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{text}")
    return Measured(seconds, peak, text)


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


def repeat(dataset, options, script_options, root) -> tuple[dict, dict]:
    """One repeat: `(measured, accuracies)`, the first by job, the second by "script" and "cnnlab"."""
    cnnlab = ["-m", "cnnlab"]
    given = [f"--{name.replace('_', '-')}={value}" for name, value in {**options, "dataset": dataset}.items()]
    for_cnn = [option for option in given if not option.startswith("--weights")]
    script = [SCRIPT, dataset, *(f"--{name}={value}" for name, value in script_options.items())]
    ten = ["-c", TEN_RECIPES, *(f"{name}={value}" for name, value in {**options, "dataset": dataset}.items())]
    jobs = {
        "script both": (script, "none"),
        "cnnlab both": ([*cnnlab, "compare", *given], "cache-both"),
        "script cnn": ([*script, "--model=cnn"], "none"),
        "cnnlab cnn": ([*cnnlab, "train", "cnn", *for_cnn], "none"),
        "script vgg16": ([*script, "--model=vgg16"], "none"),
        "cnnlab vgg16 cold": ([*cnnlab, "train", "vgg16", *given], "cache-vgg16"),
        "cnnlab vgg16 warm": ([*cnnlab, "train", "vgg16", *given], "cache-vgg16"),
        "cnnlab ten vgg16": (ten, "cache-ten"),
    }
    measured = {}
    for job, (arguments, cache) in jobs.items():
        measured[job] = measure(arguments, root / job.replace(" ", "-"), root / cache)
        print(f"  {job:18} {measured[job].seconds:8.1f} s  {measured[job].peak / 1e9:5.2f} GB", flush=True)
    accuracies = {
        "script": json.loads(measured["script both"].output.splitlines()[-1]),
        "cnnlab": runs_of(root / "cnnlab-both")["accuracy"],
    }
    return measured, accuracies


def spread(values, text="{:.2f}") -> str:
    """Median, and smallest to largest, of one value a repeat."""
    values = sorted(values)
    parts = (text.format(value) for value in (statistics.median(values), values[0], values[-1]))
    return "{} ({} to {})".format(*parts)


def report(repeats, overheads) -> None:
    pairs = {
        "whole job, both models": ("script both", "cnnlab both", 1),
        "CNN alone": ("script cnn", "cnnlab cnn", 1),
        "VGG16, empty cache": ("script vgg16", "cnnlab vgg16 cold", 1),
        "VGG16, features cached": ("script vgg16", "cnnlab vgg16 warm", 1),
        f"{RECIPES} VGG16 recipes": ("script vgg16", "cnnlab ten vgg16", RECIPES),
    }
    print("\ntimes as fast as the script")
    for title, (script, ours, times) in pairs.items():
        ratios = [times * measured[script].seconds / measured[ours].seconds for measured, _ in repeats]
        note = f"  (the script's VGG16 job counted {times} times)" if times > 1 else ""
        print(f"  {title:24} {spread(ratios)}{note}")
    print("peak memory, cnnlab's as a share of the script's")
    for title, (script, ours, _) in pairs.items():
        print(f"  {title:24} {spread([measured[ours].peak / measured[script].peak for measured, _ in repeats])}")
    print("seconds outside fit and the pass through the frozen layers")
    for title, seconds in overheads.items():
        print(f"  {title:24} {spread(seconds, '{:.1f}')}")
    print("test accuracy, cnnlab's minus the script's, in points")
    for model in ("cnn", "vgg16"):
        points = [100 * (a["cnnlab"][model] - a["script"][model]) for _, a in repeats]
        means = {side: statistics.mean(a[side][model] for _, a in repeats) for side in ("cnnlab", "script")}
        print(f"  {model:24} {spread(points)}  means {means['cnnlab']:.2%} and {means['script']:.2%}")


@click.command()
@click.argument("dataset")
@click.option("--limit", type=int, help="Training images; a fifth as many test images.")
@click.option("--weights", default="imagenet", show_default=True, help="imagenet, random or a weights file.")
@click.option("--epochs", default=5, show_default=True)
@click.option("--precision", default="float32", show_default=True, help="cnnlab's; the script's is float32.")
@click.option("--repeats", default=3, show_default=True, help="Each with a seed of its own.")
def main(dataset, limit, weights, epochs, precision, repeats):
    if Path(dataset).exists():
        dataset = str(Path(dataset).resolve())
    weights = str(Path(weights).resolve()) if Path(weights).exists() else weights
    done, overheads = [], {"CNN, data loading aside": [], "data loading": [], "each further recipe": []}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            root = Path(folder, str(i))
            options = {"weights": weights, "epochs": epochs, "seed": i, **({"limit": limit} if limit else {})}
            print(f"repeat {i + 1} of {repeats}", flush=True)
            ours = {**options, "val_fraction": 0, "precision": precision}
            measured, accuracies = repeat(dataset, ours, options, root)
            done.append((measured, accuracies))

            arguments = ["-c", LOADING, dataset, *([limit] if limit else [])]
            loading = float(measure(arguments, root / "loading", root / "none").output.splitlines()[-1])
            outside = {
                job: measured[job].seconds - runs_of(root / job.replace(" ", "-"))["train_seconds"]
                for job in ("cnnlab cnn", "cnnlab vgg16 warm", "cnnlab ten vgg16")
            }
            overheads["CNN, data loading aside"].append(outside["cnnlab cnn"] - loading)
            overheads["data loading"].append(loading)
            further = (outside["cnnlab ten vgg16"] - outside["cnnlab vgg16 warm"]) / (RECIPES - 1)
            overheads["each further recipe"].append(further)
    report(done, overheads)


main()

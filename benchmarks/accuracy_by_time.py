"""How good a model of cnnlab gets in how much time, with the plain script's CNN as the clock.

    python benchmarks/accuracy_by_time.py DATASET MODEL [--seeds 3] [-- options of cnnlab train, such as --epochs 10]

The script's CNN is trained for one epoch before the first seed and after the last one: what an epoch of it takes says
how fast the machine was. Seconds are of the whole command, from reading the files to the figures, and in its epochs.
"""

import json
import statistics
import tempfile
from pathlib import Path

import click
from compare_speed import SCRIPT, measure, runs_of


def clock(dataset, root) -> float:
    """Seconds of an epoch of the plain script's CNN, loading not counted."""
    run = measure([SCRIPT, dataset, "--model=cnn", "--epochs=1"], root, root)
    return json.loads(run.output.splitlines()[-1])["cnn"]["seconds"]


@click.command()
@click.argument("dataset", type=click.Path(exists=True, path_type=Path))
@click.argument("model")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--seeds", default=1, show_default=True)
def main(dataset, model, options, seeds):
    dataset = dataset.resolve()
    options = [str(Path(option).resolve()) if Path(option).is_file() else option for option in options]
    accuracies = []
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        epoch = [clock(dataset, root / "clock")]
        print(f"plain script's CNN: {epoch[0]:.1f} s an epoch", flush=True)
        for seed in range(seeds):
            folder = root / str(seed)
            given = ["-m", "cnnlab", "train", model, f"--dataset={dataset}", f"--seed={seed}", *options]
            job = measure(given, folder, root / "cache")
            ran = runs_of(folder)
            [accuracy] = ran["accuracy"].values()
            accuracies.append(accuracy)
            print(
                f"seed {seed}: {accuracy:.2%} of the test images, {job.seconds:.0f} s ({ran['train_seconds']:.0f} s of "
                f"training), {job.seconds / epoch[0]:.0f} epochs of the script, peak {job.peak / 1e9:.2f} GB",
                flush=True,
            )
        epoch.append(clock(dataset, root / "clock_after"))
        print(f"plain script's CNN: {epoch[1]:.1f} s an epoch")
    if seeds > 1:
        spread = 100 * statistics.stdev(accuracies)
        print(f"mean {statistics.mean(accuracies):.2%}, standard deviation {spread:.2f} points")


if __name__ == "__main__":
    main()

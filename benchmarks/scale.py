"""Peak memory and time of a training against the number of pictures: python benchmarks/scale.py CIFAR10 INTO COUNT ...

Makes INTO/COUNT of the folder CIFAR10 (train/CLASS/*, test/CLASS/*) where it is not there yet: its pictures enlarged to
96 pixels a side as JPEGs, then mirrored, then turned, so that none is nearly another. Each is trained on twice, in
processes of their own and a cache of its own: the first start decodes the pictures, the second finds them decoded.
One epoch of a small CNN, so that reading the pictures counts. Memory is what the process itself holds (anonymous), and
beside it all that is counted as its memory, pages of files that the kernel may drop at any time included.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIDE, QUALITY = 96, 90
TURNS = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90, Image.Transpose.TRANSPOSE)
CODE = """
import json, resource, sys, threading, time
import keras
import cnnlab
from cnnlab import resolve
from cnnlab.training.trainer import train

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

def watch():
    global highest
    while True:
        highest = max(highest, anonymous())
        time.sleep(0.01)

def cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)

def all_of_it():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

highest = 0
threading.Thread(target=watch, daemon=True).start()
started, worked = time.perf_counter(), cpu()
small = {"epochs": 1, "batch_size": 128, "filters": (8, 16, 32), "dense_units": 16}
recipe = cnnlab.Recipe(dataset=sys.argv[1], image_size=96, **small)
[(dataset, one)] = resolve.prepare([recipe])
loaded = time.perf_counter() - started, cpu() - worked, highest, all_of_it()
worked = cpu()
trained = train(cnnlab.build_model(one.recipe, dataset), dataset, one.recipe, quiet=True)
used = len(dataset.train) + len(dataset.val) + len(dataset.test)
print(json.dumps([used, loaded, (trained.seconds, cpu() - worked, highest, all_of_it())]))
"""


def make(cifar10, folder, count):
    """Write so many pictures, of each class and part the share that it has, and none twice."""
    by_class = [sorted(one.iterdir()) for one in sorted(cifar10.glob("t*/*"))]
    ranked = [(place / len(files), file) for files in by_class for place, file in enumerate(files)]
    in_turn = [file for _, file in sorted(ranked)]
    if count > len(in_turn) * len(TURNS):
        raise SystemExit(f"At most {len(in_turn) * len(TURNS):,} pictures can be made of {cifar10}.")
    shutil.rmtree(partial := folder.with_suffix(".partial"), ignore_errors=True)
    for number in range(count):
        turn, file = TURNS[number // len(in_turn)], in_turn[number % len(in_turn)]
        made = partial / file.relative_to(cifar10).with_stem(f"{file.stem}_{number // len(in_turn)}")
        made.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            turned = image if turn is None else image.transpose(turn)
            turned.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(made.with_suffix(".jpg"), quality=QUALITY)
    partial.rename(folder)


def measured(folder, cache):
    """What one process gives, as it prints it."""
    environment = {**os.environ, "CNNLAB_CACHE": cache, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(cifar10, into, *counts):
    what = "{:>9} {:>7} {:>9} {:>8} {:>8} {:>8} {:>10} {:>10} {:>8}"
    print(what.format("pictures", "start", "", "clock s", "CPU s", "ms each", "CPU ms each", "own MB", "all MB"))
    for folder in (Path(into, count) for count in counts):
        if not folder.exists():
            make(Path(cifar10), folder, int(folder.name))
        with tempfile.TemporaryDirectory(dir=into) as cache:
            for start in ("first", "second"):
                count, *phases = measured(folder, cache)
                for phase, (clock, cpu, own, everything) in zip(("loading", "epoch"), phases, strict=True):
                    each = [f"{1000 * seconds / count:.2f}" for seconds in (clock, cpu)]
                    row = (f"{count:,}", start, phase, f"{clock:.1f}", f"{cpu:.1f}", *each)
                    print(what.format(*row, f"{own:.0f}", f"{everything:.0f}"), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

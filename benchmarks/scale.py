"""Peak memory and time of a training against the number of pictures: python benchmarks/scale.py FOLDER [FOLDER ...]

Each folder is trained on twice, in processes of their own and a cache of its own: the first start decodes the pictures,
the second finds them decoded. One epoch of a small CNN, so that reading the pictures counts.
"""

import json
import os
import subprocess
import sys
import tempfile

CODE = """
import json, resource, sys, time
import keras
import cnnlab
from cnnlab import prepare
from cnnlab.training.loop import train

started = time.perf_counter()
small = {"epochs": 1, "batch_size": 128, "filters": (8, 16, 32), "dense_units": 16}
recipe = cnnlab.Recipe(dataset=sys.argv[1], image_size=96, **small)
dataset, [one] = prepare.prepare([recipe])
loaded = time.perf_counter() - started
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
after_loading = rss()
trained = train(cnnlab.build_model(one.recipe, dataset), dataset, one.recipe, quiet=True)
used = len(dataset.train) + len(dataset.val) + len(dataset.test)
print(json.dumps([used, loaded, trained.seconds, after_loading, rss()]))
"""


def measured(folder, cache):
    """What one process gives, as it prints it."""
    environment = {**os.environ, "CNNLAB_CACHE": cache, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, folder], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(folders):
    print(" pictures   start   load s  ms each  load MB  epoch s  ms each  peak MB")
    for folder in folders:
        with tempfile.TemporaryDirectory() as cache:
            for start in ("first", "second"):
                count, load, epoch, load_mb, peak_mb = measured(folder, cache)
                row = f"{count:9,} {start:>7} {load:8.1f} {1000 * load / count:8.2f} {load_mb:8.0f}"
                print(f"{row} {epoch:8.1f} {1000 * epoch / count:8.2f} {peak_mb:8.0f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Seconds of one pass through frozen layers: here, as tasks of Ray (what `--on` does), and with Ray Data.

    pip install 'ray[client,data]'
    python benchmarks/frozen_pass.py FOLDER_OR_NAME MODEL --weights FILE --limit 8000

On a cluster of this machine, with one CPU for each worker; the workers' start is counted, the cluster's is not.
"""

import argparse
import pickle
import time

import numpy as np

import cnnlab
from cnnlab.resolve import build_model, prepare
from cnnlab.training import frozen_features
from cnnlab.training.frozen_layers import separate_frozen_layers
from cnnlab.utils.ray_workers import ray_workers
from cnnlab.utils.startup import job, load_tensorflow
from cnnlab.utils.worker_pool import use_workers


class Front:
    """A worker of Ray Data's."""

    def __init__(self, pickled, images):
        import ray

        load_tensorflow()
        self.front, self.images = pickle.loads(ray.get(pickled)), ray.get(images)

    def __call__(self, batch):
        return {"row": batch["id"], "features": self.front.predict_on_batch(self.images[batch["id"]])}


def with_ray_data(front, images, workers):
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    # The numbers of the rows, since it does not keep their order.
    mapped = ray.data.range(len(images)).map_batches(
        Front,
        fn_constructor_args=(ray.put(pickle.dumps(front)), ray.put(images)),
        batch_size=frozen_features._batch_size(front),
        concurrency=workers,
        num_cpus=0.5,  # else they take all of them, and its tasks that make the numbers wait for ever
    )
    features = np.empty((len(images), *front.output_shape[1:]), np.float32)
    for batch in mapped.iter_batches(batch_size=None):
        features[batch["row"]] = batch["features"]
    return features


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("model")
    parser.add_argument("--weights")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    recipe = cnnlab.Recipe(model=given.model, dataset=given.dataset, weights=given.weights, limit=given.limit)
    with job():
        [(dataset, prepared)] = prepare([recipe])
        front = separate_frozen_layers(build_model(prepared.recipe, dataset)).frozen
        images = dataset.train.images[:]
        rows = np.arange(len(images))

        def ours():
            return frozen_features._fill(
                np.empty((len(images), *front.output_shape[1:]), np.float32), front, [images], rows, False
            )

        def timed(name, run):
            started = time.perf_counter()
            features = run()
            seconds = time.perf_counter() - started
            print(f"{name}: {seconds:.1f} s, {len(images) / seconds:,.0f} pictures a second", flush=True)
            return features

        front.predict_on_batch(images[:1])  # traced
        for _ in range(given.repeats):
            local = timed("here", ours)
            with ray_workers("ray", cpus=1) as workers:
                with use_workers(workers):
                    tasks = timed("Ray's tasks", ours)
                data = timed("Ray Data", lambda: with_ray_data(front, images, workers.room()))
            for name, features in (("tasks", tasks), ("Data", data)):
                print(f"{name}: differs by {np.abs(features - local).max():.3g} at most from here")


if __name__ == "__main__":
    main()

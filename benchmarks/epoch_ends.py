"""How long the end of an iteration over a TensorFlow data set waits for the thread that tunes it, all cores busy.

    python benchmarks/epoch_ends.py [ITERATIONS]

Once as Keras does it, once as the training loop does; an iteration takes about 0.3 seconds.
"""

import contextlib
import sys
import time

import numpy as np
import tensorflow as tf

from cnnlab.training.runtime import untuned_datasets

WAIT = 0.02  # seconds; freeing the iterator alone takes less than a thousandth


def iterated(number):
    """Seconds that iterations took, and that their ends took after the last batch."""
    matrix, took, ended = tf.random.normal((1200, 1200)), [], []
    for _ in range(number):
        rows = tf.data.Dataset.from_tensor_slices(np.zeros((13, 64, 64), "float32")).prefetch(tf.data.AUTOTUNE)
        iterator = iter(rows)
        began = time.perf_counter()
        for _ in iterator:
            tf.matmul(tf.matmul(matrix, matrix), matrix).numpy()
        last = time.perf_counter()
        del iterator
        took.append(last - began)
        ended.append(time.perf_counter() - last)
    return np.array(took), np.array(ended)


def main():
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    for name, around in (("tuned, as Keras does", contextlib.nullcontext()), ("as cnnlab does", untuned_datasets())):
        with around:
            took, ended = iterated(number)
        print(
            f"{name}: {(ended > WAIT).sum()} of {number} ends waited, {ended.max():.2f} s at most, "
            f"{ended.sum() / took.sum():.1%} of the time of the iterations"
        )


if __name__ == "__main__":
    main()

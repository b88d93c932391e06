"""Memory of a process after each of 25 trainings in it: python benchmarks/memory.py [TRAININGS]

Trains tiny CNNs in a loop, in a store and a cache of their own. Prints the resident memory after each, and by how much
the last one's is above the fifth's.
"""

import os
import sys
import tempfile
from pathlib import Path

import cnnlab


def megabytes():
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def main():
    number, held = int(sys.argv[1]) if len(sys.argv) > 1 else 25, []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["CNNLAB_CACHE"] = folder
        for seed in range(number):
            recipe = cnnlab.Recipe(dataset="digits", limit=120, filters=(8, 8), dense_units=16, epochs=1, seed=seed)
            cnnlab.train_model(recipe)
            held.append(megabytes())
            print(f"after {seed + 1} trainings: {held[-1]:.0f} MB", flush=True)
        os.chdir("/")
    print(f"{number} trainings take {held[-1] / held[4]:.3f} of the memory of 5")


if __name__ == "__main__":
    main()

"""Peak memory and time of `cnnlab predict` against the number of pictures.

    python benchmarks/predicting.py FOLDER COUNT ...

Run in the folder of a store with a champion. So many of the folder's JPEGs, evenly spread, are linked into a folder
beside it and named as CSV. Memory is what the process itself holds (anonymous), and beside it all that is counted as
its memory, pages of files that the kernel may drop at any time included.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "cnnlab", "predict", "--format", "csv"]


def predicted(folder):
    """`(lines, seconds, CPU seconds, own MB, all MB)` of a process of its own."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([*COMMAND, str(folder)], stdout=out, stderr=subprocess.DEVNULL)
        own = everything = 0
        while process.poll() is None:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            own = max(own, int(status.get("RssAnon", "0 kB").split()[0]))
            everything = max(everything, int(status.get("VmHWM", "0 kB").split()[0]))
            time.sleep(0.02)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise SystemExit(f"{' '.join(COMMAND)} ended with status {process.returncode}.")
        out.seek(0)
        lines = sum(1 for _ in out) - 1
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return lines, seconds, cpu, own / 1024, everything / 1024


def main(folder, *counts):
    files = sorted(Path(folder).resolve().rglob("*.jpg"))
    print(" pictures  clock s    CPU s  CPU ms each   own MB   all MB")
    for count in map(int, counts):
        with tempfile.TemporaryDirectory(dir=Path(folder).resolve().parent) as links:
            for number, file in enumerate(files[i * len(files) // count] for i in range(count)):
                os.symlink(file, Path(links, f"{number:07}.jpg"))
            lines, seconds, cpu, own, everything = predicted(links)
        print(
            f"{lines:9,} {seconds:8.1f} {cpu:8.1f} {1000 * cpu / count:12.2f} {own:8.0f} {everything:8.0f}", flush=True
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

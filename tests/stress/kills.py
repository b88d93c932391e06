"""What kill -9 costs a training: nice -n 10 python tests/stress/kills.py [KILLS [KIND ...]]

Small trainings of each kind run once undisturbed, and then killed at random moments, with a checkpoint after each
epoch and the same command again, until it ends; and once more in another folder, until there were as many kills as
asked. Prints, of each kind, the kills, and how many runs, weights, predictions and figures are lost or different in the
end. KILLS (24) are spread over the kinds, all or those named; one before the first checkpoint counts.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SMALL = "--dataset digits --limit 300 --deterministic".split()
STAGED = "--weights random --fine-tune 3 --epochs 3 --augment flip --dropout 0.2 --patience 3 --schedule cosine".split()
KINDS = {
    "cnn": [*"train cnn --epochs 10 --dropout 0.3 --augment flip,crop --ema 0.9 --patience 8".split(), *SMALL],
    "vgg16, two stages": ["train", "vgg16", *STAGED, *SMALL],
    "resnet9": [*"train resnet9 --filters 8,16 --epochs 8 --batch-size 32".split(), *SMALL],
    "a comparison of seeds": [*"compare cnn --seeds 3 --epochs 5 --filters 8,16 --augment mixup".split(), *SMALL],
    "a search": [
        *"tune cnn --trials 3 --finalists 1 --final-seeds 1 --epochs 4 --tuner random --space dropout".split(),
        *SMALL,
    ],
}
READ = """
import hashlib, json, sys
import mlflow, numpy as np
from cnnlab.tracking.mlflow_store import open_store
open_store()
client = mlflow.MlflowClient()
runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
found = {}
for run in runs:
    tags = run.data.tags
    name = tags.get("cnnlab.label") or run.data.params.get("seed", "")
    facts = {"status": run.info.status}
    metrics = {m: v for m, v in run.data.metrics.items() if "seconds" not in m}
    facts["figures"] = sorted(metrics.items())
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"):
        history = client.get_metric_history(run.info.run_id, metric)
        facts[f"curve {metric}"] = sorted((m.step, m.value) for m in history)
    models = run.outputs.model_outputs if run.outputs and run.info.status == "FINISHED" else ()
    for model in models:
        if client.get_logged_model(model.model_id).status != "READY":  # a kill left it half-written
            continue
        loaded = mlflow.keras.load_model(f"models:/{model.model_id}")
        digest = hashlib.sha256(b"".join(w.tobytes() for w in loaded.get_weights()))
        facts["weights"] = digest.hexdigest()
        path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="predictions.npz")
        with np.load(path) as stored:
            facts["predictions"] = hashlib.sha256(stored["test_probabilities"].tobytes()).hexdigest()
    found.setdefault(f"{tags['cnnlab.kind']} {name}", []).append(facts)
print(json.dumps(found, sort_keys=True))
"""


def started(command, folder):
    """The command as a process of its own, in a folder of its own."""
    environment = {**os.environ, "CNNLAB_CHECKPOINT": "0", "CNNLAB_CACHE": str(folder / "cache")}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def finish(arguments, folder, kills=0, seconds=0.0):
    """Run a command to its end, killed so often before, each time within so many seconds of work from its first epoch;
    how often it was killed, and the seconds of work of its last process.
    """
    killed = 0
    while True:
        began = time.time()
        process = started([sys.executable, "-m", "cnnlab", *arguments], folder)
        if killed < kills:
            _wait_for_training(process, folder, began)
            if _wait_for_work(process, random.uniform(0, seconds)):
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                continue
        worked = _work_of(process)
        while process.poll() is None:
            time.sleep(0.2)
            worked = _work_of(process) or worked
        if process.returncode:
            raise SystemExit((folder / "log").read_text()[-3000:])
        return killed, worked


def _work_of(process):
    """Seconds of all processors that a process has had: other jobs of the machine change nothing about them."""
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:  # it has ended
        return 0.0
    return times.user + times.system


def _wait_for_work(process, seconds):
    """Until a process has worked so much more; whether it still runs then."""
    end = _work_of(process) + seconds
    while process.poll() is None and _work_of(process) < end:
        time.sleep(0.02)
    return process.poll() is None


def _wait_for_training(process, folder, began):
    """Until the process has opened its run: what is before it has nothing to lose."""
    while process.poll() is None and time.time() - began < 600:
        if any(lock.stat().st_mtime > began for lock in (folder / "mlruns" / "running").glob("*.lock")):
            return
        time.sleep(0.05)


def read(folder):
    process = subprocess.run([sys.executable, "-c", READ], cwd=folder, check=False, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr[-3000:])
    return process.stdout.splitlines()[-1]


def differences(one, other):
    """What a store has that another has not, or otherwise: sentences."""
    one, other = json.loads(one), json.loads(other)
    found = [f"{name}: not in both" for name in one.keys() ^ other.keys()]
    for name in one.keys() & other.keys():
        finished = [[run for run in side[name] if run["status"] == "FINISHED"] for side in (one, other)]
        if len(finished[0]) > len(finished[1]):  # more of them are those of a kill behind the end
            found.append(f"{name}: finished {len(finished[0])} times, {len(finished[1])} with kills")
        [a] = finished[0]
        found += [f"{name}: {fact}" for b in finished[1] for fact in {**a, **b} if a.get(fact) != b.get(fact)]
    return found


def main(kills=24, *kinds):
    kills, kinds = int(kills), kinds or tuple(KINDS)
    random.seed(int(os.environ.get("SEED", "0")))
    total = lost = 0
    for i, kind in enumerate(kinds):
        arguments, share = KINDS[kind], kills // len(kinds) + (i < kills % len(kinds))
        killed, trainings, resumed, found = 0, 0, 0, []
        with tempfile.TemporaryDirectory() as whole:
            # Of the whole command a part is Python's own start.
            seconds = 0.6 * finish(arguments, Path(whole))[1]
            expected = read(whole)
        while killed < share:
            with tempfile.TemporaryDirectory() as broken:
                broken = Path(broken)
                killed += finish(arguments, broken, share - killed, seconds)[0]
                found += differences(expected, read(broken))
                resumed += (broken / "log").read_text().count("going on with run")
                trainings += 1
        total, lost = total + killed, lost + len(found)
        print(
            f"{kind}: {killed} kills of {trainings} trainings, {resumed} times gone on from a checkpoint, "
            f"{len(found)} lost or different"
        )
        print("".join(f"    {line}\n" for line in found), end="", flush=True)
    print(f"all: {total} kills, {lost} lost or different")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

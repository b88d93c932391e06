"""Test the command line: options, errors, and what the commands print: pytest tests/cli/test_main.py"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import mlflow
import pytest
from PIL import Image

from cnnlab.cli import main
from cnnlab.tracking.recorder import Recorder

recorder = Recorder()

SMALL = ["--dataset", "digits", "--limit", "100", "--epochs", "1"]


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cnnlab(monkeypatch, capfd):
    """Run the command in this process, where TensorFlow is loaded already."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cnnlab", *arguments])
        try:
            status = main.main()
        except SystemExit as error:
            status = error.code
        return Done(status or 0, *capfd.readouterr())

    return run


def test_train_prints_and_records(store):
    done = subprocess.run(
        [sys.executable, "-m", "cnnlab", "train", "cnn", *SMALL, "--filters", "8,8", "--deterministic"],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
    )
    assert done.returncode == 0, done.stderr
    [run] = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.data.params["filters"] == "8,8"
    assert f"{run.data.metrics['test_accuracy']:.2%}" in done.stdout
    assert run.info.run_id in done.stdout
    assert "cnnlab ui" in done.stdout
    assert done.stderr == ""


def test_the_run_to_resume_is_named_by_one_option_only(store, cnnlab):
    for arguments, said in (
        (["train"], "Missing argument 'MODEL'"),
        (["train", "cnn", "--resume", "abcd1234"], "Received: MODEL. Leave it out."),
        (["train", "--resume", "abcd1234", "--epochs", "3", "--seed", "1"], "Received: --seed. Leave it out."),
        (["train", "--resume", "abcd1234"], "which is that of no run in this store"),
        (
            ["train", "cnn", *SMALL, "--checkpoint", "often"],
            "to be seconds, 0 for every epoch, or 'none'. Received: 'often'",
        ),
    ):
        done = cnnlab(*arguments)
        assert done.returncode == 2
        assert said in done.stderr
    run_id = store.create_run("0", tags={"cnnlab.kind": "train", "cnnlab.process": "-"}).info.run_id
    store.set_terminated(run_id, "KILLED")
    done = cnnlab("train", "--resume", run_id[:8])
    assert done.returncode == 1
    assert "it ended before its first one, on another machine, or more than 14 days ago" in done.stderr


def test_help_and_wrong_arguments_load_no_heavy_package(workplace):
    script = (
        "import sys; sys.argv = ['cnnlab', *sys.argv[1:]]\n"
        "from cnnlab.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'numpy', 'matplotlib', 'sklearn', 'scipy', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    for arguments in (["--help"], ["compare", "--help"], ["train", "cnn", "--epochs", "0"], ["train", "nn"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["train", "cn"], "Did you mean 'cnn'?", 2),
        (["train", "cnn", "--dataset", "cifar1"], "Did you mean 'cifar10'?", 2),
        (["train", "cnn", "--dataset", "./nowhere"], "an existing folder. Received: './nowhere'.", 2),
        (["train", "cnn", "--epochs", "0"], "Expected epochs to be at least 1 and at most 10000. Received: 0.", 2),
        (["train", "cnn", "--epochs", "two"], "Expected epochs to be a whole number. Received: 'two'", 2),
        (["train", "cnn", "--learning-rate", "-1"], "Received: -1.0.", 2),
        (["train", "cnn", "--learning-rate", "nan"], "Received: nan.", 2),
        (["train", "cnn", "--batch-size", "0"], "Expected batch_size to be at least 1", 2),
        (["train", "cnn", "--val-fraction", "1.5"], "Received: 1.5.", 2),
        (["train", "cnn", "--filters", "32,x"], "Expected filters to be whole numbers separated by commas", 2),
        (["train", "cnn", "--filters", "32,0"], "Expected filters to be at least 1", 2),
        (["train", "cnn", "--weights", "random"], "--weights, which is for backbones", 2),
        (["train", "cnn", "--dataset", "digits", "--limit", "5"], "Expected limit to be at least 10", 2),
        (["train", "cnn", "--dataset", "digits", "--image-size", "8"], "too small|large enough", 2),
        (["train", "vgg16", "--dataset", "digits", "--image-size", "16"], "at least 32x32", 2),
        (["train", "vgg16", "--dataset", "digits", "--weights", "none.h5"], "Received: 'none.h5'", 2),
        (["train", "vgg16", "--dataset", "digits", "--weights", "text.h5"], "does not load", 1),
        (["train", "cnn", "--dataset", "damaged"], "3.png (it is not in an image format)", 1),
        (["train", "cnn", "--dataset", "single"], "at least two class folders", 2),
        (["train", "cnn", "--dataset", "cifar10"], "Expected to download cifar10", 1),
        (["train"], "Missing argument 'MODEL'", 2),
        (["train", "cnn", "--epoch", "3"], "Did you mean", 2),
        (["compare", "cnn", "resnet"], "Received: 'resnet'.", 2),
        (["trian"], "Did you mean 'train'?", 2),
        (["ui", "--port", "0"], "is not in the range", 2),
        (["audit", "cifar1"], "Did you mean 'cifar10'?", 2),
        (["audit", "digits", "--out", "text.h5"], "which holds text.h5", 2),
        (["audit", "single", "--backbone", "none.keras"], "Expected backbone to be one of", 2),
        (["audit", "digits", "--epochs", "3"], "No such option", 2),
    ],
)
def test_bad_input_gives_one_sentence_and_records_nothing(arguments, message, status, cnnlab, workplace):
    (workplace / "text.h5").write_text("no weights")
    for name in ("damaged", "single"):
        for colour in ("red", "blue") if name == "damaged" else ("red",):
            (workplace / name / colour).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (8, 8), colour).save(workplace / name / colour / f"{i}.png")
    (workplace / "damaged/red/3.png").write_text("a text")
    before = sorted(workplace.rglob("*"))
    done = cnnlab(*arguments)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert sorted(workplace.rglob("*")) == before


def test_unusable_store_is_found_before_the_data_are_loaded(workplace, cnnlab, monkeypatch):
    (workplace / "mlruns").write_text("a file")
    done = cnnlab("compare", *SMALL)
    assert done.returncode == 1
    assert "Expected to write the MLflow store" in done.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = cnnlab("compare", *SMALL)
    assert done.returncode == 1
    assert "Received no answer" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_signal_ends_the_run_as_killed(sent, store):
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnlab", "train", "cnn", "--dataset", "digits", "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "Epoch 2/" in line:
            break
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[sent], errors
    assert "Traceback" not in errors
    [run] = store.search_runs([e.experiment_id for e in store.search_experiments()])
    assert run.info.status == "KILLED"
    assert len(store.get_metric_history(run.info.run_id, "loss")) >= 1


def test_cache_is_shown_and_cleared(store, cnnlab):
    done = cnnlab("train", "vgg16", *SMALL, "--weights", "random", "--augment", "flip")
    assert done.returncode == 0, done.stderr
    assert cnnlab("cache").stdout.startswith("2 stored")
    assert "Freed" in cnnlab("cache", "--clear").stdout
    assert cnnlab("cache").stdout.startswith("0 stored")


def test_ui_answers_at_the_printed_link(store, digits, cnnlab):
    import urllib.request

    with recorder.start(recorder.experiment_for(digits), "a run", params={}, tags={}):
        pass
    process = subprocess.Popen(
        [sys.executable, "-m", "cnnlab", "ui"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "MLflow UI:\n"
        what, link = process.stdout.readline().split()
        assert what == "runs"
        base, fragment = link.split("/#")
        assert "viewStateShareKey=cnnlab" in fragment
        with urllib.request.urlopen(base, timeout=10) as answer:
            assert b"MLflow" in answer.read()
        client = mlflow.MlflowClient(base)
        assert [e.name for e in client.search_experiments() if "digits" in e.name] == ["cnnlab-digits"]
        busy = cnnlab("ui", "--port", base.rsplit(":", 1)[1])
        assert busy.returncode == 2
        assert "Expected a free port" in busy.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(base, timeout=1).close()
        except OSError:
            return
        time.sleep(0.2)
    raise AssertionError("the server outlived the command")


@pytest.mark.parametrize("name", [None, *main.cli.commands])
def test_help_has_whole_words_at_any_width(name):
    """Lines end at spaces only: the words are the same, and none of a value or an option is divided or left out."""
    command = main.cli.commands[name] if name else main.cli
    help_at = {}
    for width in (50, 58, 78, 500):
        text = command.get_help(command.context_class(command, terminal_width=width))
        assert width == 50 or max(map(len, text.splitlines())) <= width
        help_at[width] = text.split()
    assert help_at[50] == help_at[58] == help_at[78] == help_at[500]
    if name is None:
        assert all(set(c.short_help.split()) <= set(help_at[50]) for c in main.cli.commands.values())

"""Test the cache of decoded images: pytest tests/data/test_decoded_cache.py"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import cnnlab
from cnnlab.data import decoded_cache, parallel_decoding
from cnnlab.data.decoding import UnreadError
from cnnlab.data.disk_rows import MappedRows
from cnnlab.data.folder_layout import find_layout
from cnnlab.train import train_model
from cnnlab.utils import user_cache
from tests.helpers.pictures import fill, picture


@pytest.fixture
def birds(workplace):
    return fill("birds", ["robin", "wren"], 20)


@pytest.fixture
def decoding(monkeypatch):
    """How many files each pass over a folder has decoded."""
    counts, original = [], decoded_cache.decode_files

    def counted(top, files, *how):
        counts.append(len(files))
        return original(top, files, *how)

    monkeypatch.setattr(decoded_cache, "decode_files", counted)
    return counts


def load(folder="birds", **options):
    return cnnlab.load_dataset(folder, image_size=8, **options)


def test_a_folder_is_decoded_once(birds, decoding, workplace):
    first = load()
    again, other = load(), load(seed=3, val_fraction=0.3)
    assert decoding == [40]
    assert (again.train.images == first.train.images).all()
    assert again.digest == first.digest
    assert not np.array_equal(other.train.images[:20], first.train.images[:20])
    shutil.move("birds", "elsewhere")
    load("elsewhere")
    load("elsewhere", resize_mode="pad")
    load("elsewhere", limit=10)
    assert decoding == [40, 40, 12]
    [entry, *_] = [e for e in user_cache.entries() if e["shape"][0] == 40]
    assert entry["bytes"] > 40 * 8 * 8 * 3
    assert "40 of elsewhere" in entry["what"]


def test_another_file_or_time_is_decoded_again(birds, decoding):
    before = load().digest
    picture(3, 3).save("birds/wren/0003.png")
    os.utime("birds/wren/0003.png", ns=(1, 1))
    assert load().digest != before
    assert decoding == [40, 40]


def test_recheck_compares_bytes(birds, decoding, monkeypatch, capsys):
    layout = find_layout("birds")
    before = cnnlab.load_dataset(layout, image_size=8).digest
    picture(3, 3).save("birds/wren/0003.png")
    assert cnnlab.load_dataset(layout, image_size=8).digest == before  # by its stamps it is the file of before
    monkeypatch.setenv("CNNLAB_RECHECK", "1")
    assert cnnlab.load_dataset(layout, image_size=8).digest != before
    assert "1 files changed, 0 stored ones damaged" in capsys.readouterr().out
    assert decoding[-1] == 40
    birds = load().digest
    [path] = [e["path"] for e in user_cache.entries() if "of birds" in e["what"]][:1]
    pixels = np.load(path, mmap_mode="r+")
    pixels[0] ^= 1
    pixels.flush()
    assert load().digest == birds
    assert "0 files changed, 1 stored ones damaged" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["npy", "npz", "json"])
@pytest.mark.parametrize("damage", [b"", b"nothing", "half", b"null", b'{"shape": [40, 8, 8, 3], "bad": {"99": "x"}}'])
def test_damaged_files_are_decoded_again(ending, damage, birds, decoding, capsys):
    before = load().digest
    [entry] = user_cache.entries()
    file = entry["path"].with_suffix(f".{ending}")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    assert load().digest == before
    assert "are damaged" in capsys.readouterr().err
    assert decoding == [40, 40]


def test_a_folder_never_gets_the_pictures_of_another(workplace):
    """The same names, sizes and times, as archives and images of containers have them."""
    for top, colours in (("one", {"a": "red", "b": "lime"}), ("other", {"a": "lime", "b": "red"})):
        for name, colour in colours.items():
            (workplace / top / name).mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (8, 8), colour).save(workplace / top / name / f"{i}.bmp")
                os.utime(workplace / top / name / f"{i}.bmp", (1e9, 1e9))
    one, other = load("one", val_fraction=0), load("other", val_fraction=0)
    assert one.train.images[one.train.labels == 0][0, 0, 0].tolist() == [255, 0, 0]
    assert other.train.images[other.train.labels == 0][0, 0, 0].tolist() == [0, 255, 0]


def test_files_that_could_not_be_read_are_tried_again(birds, monkeypatch):
    original = parallel_decoding.read_file

    def refused(file):
        if file.endswith("wren/0003.png"):
            raise UnreadError(file, "Stale file handle")
        return original(file)

    monkeypatch.setattr(parallel_decoding, "read_file", refused)
    with pytest.raises(cnnlab.LabError, match=r"wren/0003.png \(Stale file handle\)"):
        load()
    assert len(load(skip_bad=True).train) == 28
    monkeypatch.setattr(parallel_decoding, "read_file", original)
    assert len(load().train) == 29


@pytest.fixture
def load_until_killed(monkeypatch):
    """Start a pass over `birds` anew that notes every tenth file and ends at the 25th."""

    def start():
        user_cache.clear()
        monkeypatch.setattr(decoded_cache, "WRITTEN_AT_ONCE", 8 * 8 * 3 * 10)
        original, seen = parallel_decoding._decode_one, []

        def killed(file, *how):
            seen.append(file)
            if len(seen) == 25:
                raise KeyboardInterrupt
            return original(file, *how)

        monkeypatch.setattr(parallel_decoding, "_decode_one", killed)
        with pytest.raises(KeyboardInterrupt):
            load()

    return start


def test_a_pass_that_was_killed_goes_on(birds, decoding, load_until_killed):
    whole = load().digest
    load_until_killed()
    assert user_cache.entries() == []
    assert load().digest == whole
    assert decoding == [40, 40, 20]
    assert not list(user_cache.cache_folder("pictures").glob("unfinished-*"))


def test_a_killed_pass_that_could_not_read_a_file_starts_again(birds, load_until_killed, monkeypatch):
    whole, original = load().digest, parallel_decoding.read_file

    def refused(file):
        if file.endswith("robin/0003.png"):
            raise UnreadError(file, "Stale file handle")
        return original(file)

    monkeypatch.setattr(parallel_decoding, "read_file", refused)
    load_until_killed()
    monkeypatch.setattr(parallel_decoding, "read_file", original)
    assert load().digest == whole


@pytest.mark.parametrize("damage", ["pixels", "cut", "notes"])
def test_a_pass_whose_pixels_did_not_reach_the_disk_starts_again(damage, birds, load_until_killed):
    whole = load().digest
    load_until_killed()
    [folder] = user_cache.cache_folder("pictures").glob("unfinished-*")
    [pixels] = [file for file in folder.glob("*.npy") if file.name != "known.npy"]
    if damage == "pixels":
        np.load(pixels, mmap_mode="r+")[3] = 0
    elif damage == "cut":
        os.truncate(pixels, 3000)
    else:
        (folder / "done.json").write_text("null")
    assert load().digest == whole


def test_kill_9_loses_nothing(workplace):
    """In workers, at some moment of the pass."""
    fill("many", ["a", "b"], 600)
    code = (
        "import cnnlab; from cnnlab.data import decoded_cache, parallel_decoding; "
        "decoded_cache.WRITTEN_AT_ONCE = parallel_decoding.WORTH = 0; "
        "parallel_decoding.PATIENCE = 0; parallel_decoding.CHUNK = 20; print('go', flush=True); "
        "print(cnnlab.load_dataset('many', image_size=8).digest)"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(cnnlab.__file__).parent.parent)}
    for wait in (0.6, 1.0):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(wait)
            process.kill()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == cnnlab.load_dataset("many", image_size=8).digest
    user_cache.clear()
    assert done.stdout.split()[-1] == cnnlab.load_dataset("many", image_size=8).digest


def test_without_room_in_the_cache_pictures_are_kept_in_memory_or_refused(birds, monkeypatch, capsys):
    before = load().digest
    user_cache.clear()
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 100))
    assert load().digest == before
    assert "cannot be stored" in capsys.readouterr().err
    assert user_cache.entries() == []
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    with pytest.raises(cnnlab.LabError, match=r"for the decoded pictures.*0.0 MB are needed, and 0.0 MB are free"):
        load()


def test_grey_of_16_bits_is_scaled_by_the_sets_own_range(workplace):
    for name, value in (("dark", 100), ("light", 4000)):
        (workplace / "scans" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8), value + i, np.uint16)).save(workplace / "scans" / name / f"{i}.png")
    d = load("scans", val_fraction=0)
    assert d.grey_range == (100, 4009)
    assert d.train.images[d.train.labels == 0].max() == 0
    assert d.train.images[d.train.labels == 1].min() >= 254
    assert "grey values beyond 8 bits, 100 to 4009 here, become 0 to 255" in " ".join(d.summary.lines)
    assert load("scans").grey_range == (100, 4009)


def test_rows_of_the_disk_train_as_those_in_memory_do(birds, monkeypatch, store):
    """Predictions, figures and digests come out of batches that are read one by one."""
    recipe = cnnlab.Recipe(dataset="birds", image_size=16, filters=(4,), dense_units=4, epochs=2, batch_size=64)
    in_memory = train_model(recipe)
    monkeypatch.setattr("cnnlab.data.pictures.IN_MEMORY", 0)
    dataset = cnnlab.load_dataset("birds", image_size=16)
    assert isinstance(dataset.train.images, MappedRows)
    assert dataset.train.images.shape == (29, 16, 16, 3)
    assert (dataset.train.images[3] == cnnlab.load_dataset("birds", image_size=16).train.images[3:4][0]).all()
    mapped = train_model(recipe)
    # One batch an epoch, so that its order says nothing.
    assert mapped.history["loss"] == pytest.approx(in_memory.history["loss"], rel=1e-4)
    assert mapped.test.probabilities == pytest.approx(in_memory.test.probabilities, abs=1e-4)
    assert train_model(recipe).history["loss"] == mapped.history["loss"]


def test_pictures_and_features_share_the_bound_of_the_cache(birds, monkeypatch, workplace):
    load()
    [entry] = user_cache.entries()
    features = user_cache.cache_folder("features")
    features.mkdir(parents=True)
    np.save(features / "old.npy", np.zeros(1000))
    (features / "old.json").write_text(json.dumps({"shape": [1000], "what": "up to layer x"}))
    os.utime(features / "old.npy", (0, 0))
    monkeypatch.setenv(user_cache.LIMIT_VARIABLE, str(entry["bytes"] * 1.3 / 1e9))
    load(limit=4)
    assert [e["kind"] for e in user_cache.entries()] == ["pictures", "pictures"]
    load(limit=6)
    assert len(user_cache.entries()) == 2

"""Test registering, promoting and rolling back models: pytest tests/tracking/test_model_registry.py"""

import csv
import dataclasses
import http.server
import io
import json
import threading
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from PIL import Image

import cnnlab
from cnnlab import classify, reproduction
from cnnlab.compare import compare_runs
from cnnlab.models import custom_model
from cnnlab.tracking import logged_models, model_registry, promotion, run_queries
from cnnlab.train import train_model


@pytest.fixture
def poor(small_cnn):
    """A recipe that learns next to nothing."""
    return dataclasses.replace(small_cnn, filters=(4,), epochs=1, learning_rate=1e-6)


@pytest.fixture
def good(small_cnn):
    """One that clearly beats it, on enough validation images to show it."""
    return dataclasses.replace(small_cnn, epochs=8, learning_rate=1e-2)


def test_the_best_run_is_registered_with_its_card(store, small_cnn, poor, good):
    cnnlab.compare_models([poor, good])
    version, said = model_registry.register_run()
    result = run_queries.read_result(run_queries.best_run())
    assert result.recipe == good.with_defaults()
    assert version.run_id == result.run_id
    assert (version.name, version.number, version.aliases) == ("cnnlab-digits", 1, ())
    assert f"{result.validation.accuracy:.2%}" in said[0]
    assert version.tags["test_accuracy"] == f"{result.test_accuracy:.4f}"
    assert json.loads(version.tags["recipe"])["filters"] == "8,8"
    card = mlflow.artifacts.load_text("models:/cnnlab-digits/1/model_card.md")
    for text in ("## Limits", "## Confusion matrix", f"{result.test_accuracy:.2%}", version.tags["dataset_digest"]):
        assert text in card
    again, said = model_registry.register_run(result.run_id[:8])
    assert again.number == 1
    assert "already" in said[-1]
    assert len(model_registry.list_versions()) == 1


def test_only_a_better_model_on_the_same_images_is_promoted(store, poor, good):
    weak, strong = (cnnlab.compare_models([recipe]).results[0] for recipe in (poor, good))
    first, _ = model_registry.register_run(weak.run_id)
    assert promotion.promote(first).promoted
    better, _ = model_registry.register_run(strong.run_id)
    # So wide a margin is not met.
    assert not promotion.promote(better, margin=0.99).promoted
    assert model_registry.find_champion("cnnlab-digits").number == 1
    decision = promotion.promote(better)
    assert decision.promoted, decision.reason
    assert "15 validation images" in decision.reason
    aliases = store.get_registered_model("cnnlab-digits").aliases
    assert {alias: int(number) for alias, number in aliases.items()} == {"champion": 2, "previous": 1}
    evidence = json.loads(mlflow.artifacts.load_text("models:/cnnlab-digits/2/evidence/v2_against_v1.json"))
    right = [r.validation.right for r in (strong, weak)]
    assert evidence["difference"] == pytest.approx(right[0].mean() - right[1].mean())
    assert evidence["low"] > 0
    assert evidence["images"]["digest"] == strong.validation.digest

    refused = promotion.promote(first, by="macro_f1")
    assert not refused.promoted
    assert "by macro f1: champion version 2 is better than version 1" in refused.reason
    evidence = json.loads(mlflow.artifacts.load_text("models:/cnnlab-digits/1/evidence/v1_against_v2.json"))
    assert evidence["by"] == "macro_f1"
    assert evidence["difference"] == pytest.approx(weak.validation.macro_f1 - strong.validation.macro_f1)
    refused = promotion.promote(first)
    assert not refused.promoted
    assert "is better than version 1" in refused.reason
    assert promotion.promote(first, force=True).promoted
    assert promotion.rollback("cnnlab-digits")[1].number == 2
    assert promotion.rollback("cnnlab-digits")[1].number == 1
    with pytest.raises(cnnlab.LabError, match="it was the first"):
        promotion.rollback("cnnlab-digits")
    assert "previous" not in store.get_registered_model("cnnlab-digits").aliases


def test_other_images_are_not_comparable(store, small_cnn, picture_folder):
    digits = cnnlab.compare_models([small_cnn]).results[0]
    champion, _ = model_registry.register_run(digits.run_id, name="pictures")
    promotion.promote(champion)
    fewer = train_model(dataclasses.replace(small_cnn, limit=100))
    challenger, _ = model_registry.register_run(fewer.run_id, name="pictures")
    with pytest.raises(cnnlab.LabError, match=r"not comparable: it was tested on 37 images of digits"):
        promotion.promote(challenger)
    colours = train_model(dataclasses.replace(small_cnn, dataset=str(picture_folder), limit=None, val_fraction=0.2))
    challenger, _ = model_registry.register_run(colours.run_id, name="pictures")
    with pytest.raises(cnnlab.LabError, match=r"names the classes 0, 1, 2, 3, ..., and version 3 blue, red"):
        promotion.promote(challenger)
    assert model_registry.find_champion("pictures").number == 1
    assert "not compared" in promotion.promote(challenger, force=True).reason
    with pytest.raises(cnnlab.ArgumentError, match=r"tested on the same images. Received: .* 37 images of digits"):
        compare_runs([digits.run_id, fewer.run_id])


def test_another_validation_split_is_judged_on_the_test_set(store, small_cnn):
    first = train_model(small_cnn)
    second = train_model(dataclasses.replace(small_cnn, val_fraction=0.2))
    champion, challenger = (model_registry.register_run(result.run_id)[0] for result in (first, second))
    promotion.promote(champion)
    store.delete_run(first.run_id)  # what it is compared by lies beside the model
    decision = promotion.promote(challenger)
    assert "On the same 37 test images (they held out other validation images)" in decision.reason

    model = store.get_model_version(champion.name, champion.number).source.removeprefix("models:/")
    Path("mlruns/artifacts/models", model, "artifacts/predictions.npz").unlink()
    Path("mlruns/artifacts", first.run_id, "artifacts/predictions.npz").unlink()
    with pytest.raises(cnnlab.LabError, match=r"Expected cnnlab-digits version 1 to have its predictions.*with force"):
        promotion.promote(challenger)
    assert model_registry.find_champion("cnnlab-digits").number == 1
    assert "Forced, not compared" in promotion.promote(challenger, force=True).reason


def test_a_stored_model_that_diverged_is_of_no_use(store, small_cnn, digits, monkeypatch):
    """An earlier version finished the run of a model whose last step made NaN of its weights."""
    good = train_model(small_cnn)
    [champion, _] = model_registry.register_run(good.run_id)
    monkeypatch.setattr("cnnlab.training.trainer._expect_finite", lambda *_: None)
    nan = keras.callbacks.LambdaCallback(
        on_train_end=lambda logs: model.set_weights([w * np.nan for w in model.get_weights()])
    )
    recipe = dataclasses.replace(small_cnn, epochs=1)
    model = cnnlab.build_model(recipe, digits)
    diverged = cnnlab.fit_and_evaluate(model, digits, recipe, callbacks=[nan])
    refused = pytest.raises(cnnlab.LabError, match=r"to have finite weights.*lower learning rate, or name another")
    with refused:
        model_registry.register_run(diverged.run_id)
    with refused:
        cnnlab.load_classifier(diverged.run_id)  # and so prediction, export and server
    with monkeypatch.context() as earlier:
        for module in (logged_models, promotion):
            earlier.setattr(module, "_expect_finite", lambda *_: None)
        version, _ = model_registry.register_run(diverged.run_id)
        promotion.promote(version)
        assert promotion.promote(champion, force=True).promoted
    diverged_in_training = pytest.raises(cnnlab.LabError, match="version 2 to have finite probabilities")
    with diverged_in_training:
        promotion.promote(version, force=True)
    with diverged_in_training:
        promotion.rollback("cnnlab-digits")
    assert model_registry.find_champion("cnnlab-digits").number == champion.number


CUSTOM = """
import keras

@keras.saving.register_keras_serializable("mine")
class Scaled(keras.layers.Layer):
    def call(self, x):
        return keras.ops.cast(x, "float32") / 255

def build(input_shape, num_classes):
    x = images = keras.Input(input_shape, dtype="uint8")
    x = keras.layers.Flatten()(Scaled()(x))
    return keras.Model(images, keras.layers.Dense(num_classes, activation="softmax")(x))
"""


def test_a_model_must_load_again_before_it_is_registered(store, small_cnn, digits, workplace, monkeypatch):
    images = keras.Input(digits.image_shape, dtype="uint8")
    flat = keras.layers.Flatten()(keras.layers.Lambda(lambda x: keras.ops.cast(x, "float32") / 255)(images))
    model = keras.Model(images, keras.layers.Dense(10, activation="softmax")(flat))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    recipe = dataclasses.replace(small_cnn, epochs=1)
    result = cnnlab.fit_and_evaluate(model, digits, recipe)
    with pytest.raises(cnnlab.LabError, match=r"to load again. Received .*without Lambda"):
        model_registry.register_run(result.run_id)
    assert model_registry.list_versions() == []

    (workplace / "mine.py").write_text(CUSTOM)
    recipe = cnnlab.Recipe(model="mine.py:build", dataset="digits", limit=150, epochs=1)
    result = train_model(recipe)
    (workplace / "mine.py").unlink()
    # As in another process.
    keras.saving.get_custom_objects().pop("mine>Scaled")
    custom_model._load.cache_clear()
    # The store may be anybody's, and so may the code in it.
    with pytest.raises(cnnlab.LabError, match=r"mine.py' to hold the code that the store has .*CNNLAB_STORED_CODE=run"):
        model_registry.register_run(result.run_id)
    (workplace / "mine.py").write_text(CUSTOM + "print('another')")
    with pytest.raises(cnnlab.LabError, match="to hold the code that the store has"):
        model_registry.register_run(result.run_id)
    assert "mine>Scaled" not in keras.saving.get_custom_objects()
    monkeypatch.setenv("CNNLAB_STORED_CODE", "run")
    version, _ = model_registry.register_run(result.run_id)
    keras.saving.get_custom_objects().pop("mine>Scaled")
    custom_model._load.cache_clear()
    classifier = classify.load_classifier(f"models:/{version.name}/1")
    assert np.allclose(classifier.probabilities(digits.test.images), result.test.probabilities, atol=1e-5)


@pytest.mark.long
def test_stored_runs_are_compared_on_their_predictions(store, small_cnn, capsys):
    trained = cnnlab.compare_models([small_cnn, dataclasses.replace(small_cnn, seed=1)])
    stored = compare_runs([r.run_id[:10] for r in trained.results])
    assert stored.verdicts == trained.verdicts
    assert "on average over 2 seeds" in stored.verdicts[0]
    for before, after in zip(trained.results, stored.results, strict=True):
        assert after.recipe == before.recipe
        assert after.history == {name: pytest.approx(values) for name, values in before.history.items()}
        assert np.array_equal(after.test.probabilities, before.test.probabilities)
        assert (after.test.digest, after.validation.digest) == (before.test.digest, before.validation.digest)
    parent = store.get_run(stored.run_id)
    assert parent.data.tags["cnnlab.runs"] == ",".join(r.run_id for r in trained.results)
    text = mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/comparison.csv")
    for row, r in zip(csv.DictReader(io.StringIO(text)), trained.results, strict=True):
        assert float(row["test_accuracy_low"]) < r.test_accuracy < float(row["test_accuracy_high"])
        assert 0 <= float(row["calibration_error"]) <= 1


def test_wrong_runs_get_a_sentence(store, small_cnn, digits):
    with pytest.raises(cnnlab.LabError, match="none in this store"):
        model_registry.register_run()
    with pytest.raises(cnnlab.LabError, match="an empty registry"):
        classify.load_classifier()
    comparison = cnnlab.compare_models([small_cnn])
    with pytest.raises(cnnlab.ArgumentError, match="a compare run"):
        model_registry.register_run(comparison.run_id)
    with pytest.raises(cnnlab.ArgumentError, match="that of no run"):
        model_registry.register_run("0123456789abcdef")
    with pytest.raises(cnnlab.ArgumentError, match="Expected a run's id"):
        model_registry.register_run("my run")
    with pytest.raises(cnnlab.ArgumentError, match="two different runs"):
        compare_runs([comparison.results[0].run_id] * 2)
    broken = cnnlab.build_model(small_cnn, digits)
    broken.set_weights([w * np.nan for w in broken.get_weights()])
    with pytest.raises(cnnlab.LabError, match="Expected a finite loss"):
        cnnlab.fit_and_evaluate(broken, digits, small_cnn)
    [failed] = store.search_runs([e.experiment_id for e in store.search_experiments()], "attributes.status = 'FAILED'")
    with pytest.raises(cnnlab.ArgumentError, match=r"which is FAILED \(LabError: Expected a finite loss"):
        model_registry.register_run(failed.info.run_id)
    model_registry.register_run(comparison.results[0].run_id)
    with pytest.raises(cnnlab.LabError, match=r"to have a champion. Received: none"):
        classify.load_classifier()
    with pytest.raises(cnnlab.LabError, match="to be a model of this store"):
        classify.load_classifier("models:/cnnlab-digits@nobody")
    with pytest.raises(cnnlab.LabError, match="to have a champion"):
        promotion.rollback("cnnlab-digits")


@pytest.fixture
def classifier(store, good):
    """The champion of a small registry, loaded."""
    promotion.promote(model_registry.register_run(train_model(good).run_id)[0])
    return classify.load_classifier()


def test_a_loaded_champion_is_called_by_its_version_and_has_its_card(classifier, store):
    assert classifier.uri == "models:/cnnlab-digits/1"
    about = logged_models.about(classifier.uri)
    assert (about["name"], about["version"]) == ("cnnlab-digits", 1)
    assert about["card"].startswith("# cnn on digits\n")
    logged = store.get_model_version("cnnlab-digits", 1).source
    assert logged_models.about(logged) == {"name": logged, "version": None, "card": None}


def test_pictures_are_named_as_in_the_test(classifier, good, workplace):
    dataset = cnnlab.load_dataset("digits", limit=good.limit)
    result = run_queries.read_result(run_queries.best_run())
    (workplace / "shots").mkdir()
    for i, image in enumerate(dataset.test.images):
        Image.fromarray(image).save(workplace / "shots" / f"{i:02}.png")
    (workplace / "shots" / "03b.png").write_text("no picture")
    files = classify.list_pictures([workplace / "shots"])
    rows = list(classify.classify_files(classifier, files))
    assert [Path(row[0]).name for row in rows if isinstance(row[1], cnnlab.LabError)] == ["03b.png"]
    probabilities = np.array([row[1] for row in rows if not isinstance(row[1], cnnlab.LabError)])
    assert probabilities == pytest.approx(result.test.probabilities, abs=1e-5)
    assert classifier.class_names == dataset.class_names
    [(name, probability), _] = classifier.top(probabilities[0], 2)
    assert name == dataset.class_names[probabilities[0].argmax()]
    assert probability == probabilities[0].max()


def test_pictures_are_made_as_in_the_training(store, workplace):
    """Cut, and grey of 16 bits by the range of the set: the model carries both."""
    for label, values in (("dark", range(100, 110)), ("light", range(3000, 3010))):
        (workplace / "scans" / label).mkdir(parents=True)
        for value in values:
            pixels = np.full((20, 60), 50_000, np.uint16)  # beside the middle square
            pixels[:, 20:40] = value
            Image.fromarray(pixels).save(workplace / "scans" / label / f"{value}.png")
    recipe = cnnlab.Recipe(dataset="scans", image_size=16, filters=(4,), dense_units=8, epochs=12, learning_rate=0.01)
    result = train_model(recipe)
    classifier = classify.load_classifier(result.run_id)
    assert (classifier.resize_mode, classifier.grey_range) == ("crop", (100, 50_000))
    dataset = cnnlab.load_dataset("scans", image_size=16)
    files = classify.list_pictures(["scans"])
    made = {classifier.image(file).tobytes() for file in files}
    assert {image.tobytes() for part in (dataset.train, dataset.val, dataset.test) for image in part.images} == made
    tested = {image.tobytes(): p for image, p in zip(dataset.test.images, result.test.probabilities, strict=True)}
    for file, probabilities in classify.classify_files(classifier, files):
        if (image := classifier.image(file).tobytes()) in tested:
            assert probabilities == pytest.approx(tested[image], abs=1e-5)


def test_pictures_at_urls_are_named(classifier, workplace, monkeypatch):
    class Host(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    Image.new("L", (32, 32)).save("black.png")
    (workplace / "folder.jpg").mkdir()
    Image.new("L", (32, 32), 255).save("folder.jpg/white.png")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        files = classify.list_pictures(
            [f"{url}/black.png", "folder.jpg", f"{url}/none.png", "http://127.0.0.1:9/x.png"]
        )
        monkeypatch.setattr(classify, "MOST_BYTES", 2**20)
        rows = list(classify.classify_files(classifier, files))
        monkeypatch.setattr(classify, "MOST_BYTES", 10)
        [(_, large)] = classify.classify_files(classifier, files[:1])
        server.shutdown()
    black, white, missing, refused = (result for _, result in rows)
    assert black.argmax() in range(10)
    assert rows[1][0] == "folder.jpg/white.png"
    assert white.shape == (10,)
    assert "404" in str(missing)
    assert "refused" in str(refused)
    assert "at most 10 bytes" in str(large)


def test_predictions_are_written_in_three_formats():
    rows = [("a.png", [("cat", 0.75), ("dog", 0.25)]), ("b, c.png", [("dog", 0.5), ("cat", 0.5)])]
    table, text, array = ("".join(classify.write_predictions(rows, f, 2, 8)) for f in ("table", "csv", "json"))
    assert table.splitlines() == ["a.png     cat 75.0%  dog 25.0%", "b, c.png  dog 50.0%  cat 50.0%"]
    assert text.splitlines()[0].split(",") == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert list(csv.DictReader(io.StringIO(text)))[1]["file"] == "b, c.png"
    assert json.loads(array)[0]["predictions"][0] == {"class": "cat", "probability": 0.75}
    assert json.loads("".join(classify.write_predictions([], "json", 2, 8))) == []


@pytest.mark.long
def test_a_deterministic_run_repeats_bit_for_bit(store, small_cnn):
    recipe = dataclasses.replace(small_cnn, deterministic=True, dropout=0.2, augment="full")
    before = train_model(recipe)
    again = reproduction.reproduce(before.run_id[:8])
    assert again.verdict == f"All {len(again.figures)} figures are equal bit for bit."
    assert len(again.figures) == 8
    assert again.changes == []
    assert store.get_run(again.run_id).data.tags["cnnlab.reproduces"] == before.run_id
    other = train_model(dataclasses.replace(recipe, seed=1))
    store.set_tag(other.run_id, "cnnlab.threads", "64")
    # As if it had been trained with another seed than it says.
    artifacts = Path("mlruns/artifacts", other.run_id, "artifacts")
    (artifacts / "recipe.json").write_text(recipe.to_json())
    different = reproduction.reproduce(other.run_id)
    assert "differ, by at most" in different.verdict
    assert any(change.startswith("threads: 64 then") for change in different.changes)


def test_runs_say_what_they_were_made_with(store, small_cnn):
    tags = store.get_run(train_model(small_cnn).run_id).data.tags
    for name in ("threads", "machine", "python", "version.tensorflow", "dataset_digest"):
        assert tags[f"cnnlab.{name}"]
    assert int(tags["cnnlab.threads"]) >= 1

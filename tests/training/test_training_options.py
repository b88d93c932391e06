"""Test optimizers, augmentation, class weights and the other options of a training."""

import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import cnnlab
from cnnlab.data.batching import Batches
from cnnlab.data.class_weights import class_weights
from cnnlab.models.augmentation import augment_examples, mixing_layers, parse_augment
from cnnlab.train import train_model
from cnnlab.training import trainer
from cnnlab.training.callbacks import Lookahead
from cnnlab.training.optimizers import compile_model

# Each option beside each other one at least once; all pairs were tried by hand.
TOGETHER = [
    {"schedule": "one-cycle", "optimizer": "sgd", "label_smoothing": 0.1, "augment": "cutmix", "ema": 0.9},
    {"schedule": "plateau", "optimizer": "muon", "ema": 0.9, "patience": 1, "class_weights": "balanced"},
    {"schedule": "plateau", "optimizer": "sgd", "lookahead": 0.8, "patience": 1, "augment": "altflip,crop"},
    {
        **{"schedule": "cosine", "warmup": 0.3, "optimizer": "adamw", "clip_norm": 1.0, "class_weights": "balanced"},
        **{"augment": "flip,mixup", "label_smoothing": 0.1, "patience": 2},
    },
]


@pytest.mark.parametrize("fields", TOGETHER)
def test_options_of_a_training_combine(fields, small_cnn, digits, workplace):
    recipe = dataclasses.replace(small_cnn, **fields)
    model = cnnlab.build_model(recipe, digits)
    trained = trainer.train(model, digits, recipe, splits=("val",), quiet=True)
    assert np.isfinite(trained.history["loss"]).all()
    # What was validated last, with averaged weights, is what predicts.
    assert trained.predictions["val"].accuracy == pytest.approx(trained.history["val_accuracy"][-1], abs=1e-6)
    model.save("m.keras")
    loaded = keras.models.load_model("m.keras")  # its optimizer and loss are Keras's own
    assert loaded.predict(digits.val.images, verbose=0) == pytest.approx(
        trained.predictions["val"].probabilities, abs=1e-5
    )


def rates(steps, **schedule):
    images = keras.Input((1,))
    model = keras.Model(images, keras.layers.Dense(2, activation="softmax")(images))
    compile_model(model, 1.0, steps=steps, **schedule)
    rate = model.optimizer._learning_rate
    return [float(rate(step)) for step in range(steps + 1)]


def test_schedules_rise_and_fall_where_they_say():
    cosine = rates(100, schedule="cosine")
    assert (cosine[0], cosine[50], cosine[100]) == (1.0, pytest.approx(0.5), pytest.approx(0, abs=1e-7))
    one_cycle = rates(100, schedule="one-cycle", warmup=0.3)
    assert one_cycle[0] == pytest.approx(1 / 25)
    assert (int(np.argmax(one_cycle)), max(one_cycle)) == (30, pytest.approx(1.0))
    assert one_cycle[65] == pytest.approx(0.5)
    assert one_cycle[100] == pytest.approx(0, abs=1e-7)
    warm = rates(100, schedule="constant", warmup=0.1)
    assert (warm[0], warm[5], warm[10], warm[100]) == (0.0, pytest.approx(0.5), 1.0, 1.0)
    ahead = rates(100, schedule="one-cycle", warmup=0.3, lookahead=0.8)
    assert (ahead[30], ahead[65], ahead[100]) == pytest.approx((1.0, 0.535, 0.07))


def test_the_learning_rate_is_logged_by_epoch(store, small_cnn):
    result = train_model(dataclasses.replace(small_cnn, schedule="cosine", learning_rate=0.01, epochs=2))
    assert result.history["learning_rate"] == pytest.approx([0.005, 0], abs=1e-6)
    logged = store.get_metric_history(result.run_id, "learning_rate")
    assert [(m.step, m.value) for m in logged] == list(enumerate(result.history["learning_rate"]))


def test_label_smoothing_is_in_the_loss_and_not_in_the_test_loss(small_cnn, digits, workplace):
    recipe = dataclasses.replace(small_cnn, label_smoothing=0.3)
    trained = trainer.train(cnnlab.build_model(recipe, digits), digits, recipe, quiet=True)
    val = trained.predictions["val"]
    smooth = np.eye(10)[val.labels] * 0.7 + 0.03
    expected = -(smooth * np.log(val.probabilities)).sum(axis=1).mean()
    assert trained.history["val_loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert val.loss == pytest.approx(
        -np.log(val.probabilities[np.arange(len(val.labels)), val.labels]).mean(), rel=1e-4
    )


def test_averaged_weights_are_validated_and_kept(small_cnn, digits, workplace):
    """With a decay of 0.9999 over a few steps the average is still near the start, and hardly better than chance."""
    recipe = dataclasses.replace(small_cnn, ema=0.9999, epochs=2, learning_rate=0.02)
    averaged = trainer.train(cnnlab.build_model(recipe, digits), digits, recipe, quiet=True)
    plain = dataclasses.replace(recipe, ema=0.0)
    trained = trainer.train(cnnlab.build_model(plain, digits), digits, plain, quiet=True)
    assert averaged.history["loss"] == pytest.approx(trained.history["loss"], rel=1e-3)
    assert averaged.history["val_loss"][-1] == pytest.approx(np.log(10), abs=0.15)
    assert averaged.predictions["val"].loss == pytest.approx(averaged.history["val_loss"][-1], rel=1e-4)
    assert trained.predictions["val"].loss < averaged.predictions["val"].loss


def softmax(scores):
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_lookahead_takes_the_weights_back_by_more_and_more():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(26, 3)).astype("float32"), np.eye(2, dtype="float32")[rng.integers(0, 2, 26)]
    images = keras.Input((3,))
    model = keras.Model(images, keras.layers.Dense(2, activation="softmax", use_bias=False)(images))
    [weights] = model.get_weights()
    compile_model(model, 0.5, optimizer="sgd", label_smoothing=1e-9, lookahead=0.8)
    model.fit(x, y, batch_size=2, epochs=2, shuffle=False, callbacks=[Lookahead(0.8, 26)], verbose=0)
    slow, step, without = weights, 0, weights
    for _ in range(2):  # epochs of 13 steps
        for start in range(0, 26, 2):
            batch, shares = x[start : start + 2], y[start : start + 2]
            weights = weights - 0.5 * batch.T @ (softmax(batch @ weights) - shares) / 2
            without = without - 0.5 * batch.T @ (softmax(batch @ without) - shares) / 2
            step += 1
            if step in (5, 10, 13, 18, 23, 26):
                decay = 0.8 * (step / 26) ** 3
                weights = slow = decay * slow + (1 - decay) * weights
    assert model.get_weights()[0] == pytest.approx(weights, abs=1e-5)
    assert abs(weights - without).max() > 0.02


def test_lookahead_averages_the_statistics_of_batch_normalization_too(digits):
    images = keras.Input((32, 32, 3))
    norm = keras.layers.BatchNormalization(momentum=0.0)
    x = keras.layers.GlobalAveragePooling2D()(norm(images))
    model = keras.Model(images, keras.layers.Dense(10, activation="softmax")(x))
    compile_model(model, 0.0, optimizer="sgd", lookahead=0.8)
    pictures, labels = digits.train.images[:30] / 255, digits.train.labels[:30]
    model.fit(pictures, labels, batch_size=3, shuffle=False, callbacks=[Lookahead(0.8, 10)], verbose=0)
    fifth, tenth = (pictures[start : start + 3].mean(axis=(0, 1, 2)) for start in (12, 27))  # what momentum 0 leaves
    kept = 0.8 * 0.5**3
    half = (1 - kept) * fifth
    assert norm.moving_mean.numpy() == pytest.approx(0.8 * half + 0.2 * tenth, abs=1e-5)


def test_offsets_of_batch_normalization_have_a_rate_of_their_own():
    """By one step of SGD: 64 times the step, and the same decay."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)).astype("float32"), np.eye(2, dtype="float32")[rng.integers(0, 2, 8)]
    steps = {}
    for factor in (1.0, 64.0):
        keras.utils.set_random_seed(0)
        images = keras.Input((3,))
        norm = keras.layers.BatchNormalization(beta_initializer="ones", name="norm")
        model = keras.Model(images, keras.layers.Dense(2, activation="softmax", name="scores")(norm(images)))
        decay = 0.5 if factor == 64 else 0.0
        compile_model(
            model, 0.01, decay, optimizer="sgd", momentum=0.9, label_smoothing=1e-9, bias_lr_scale=factor, lookahead=0.5
        )
        kernel = model.get_layer("scores").get_weights()[0]
        model.fit(x, y, batch_size=8, verbose=0)
        steps[factor] = norm.beta.numpy() - 1, model.get_layer("scores").get_weights()[0] - kernel, kernel
    assert steps[64.0][0] == pytest.approx(64 * steps[1.0][0] - 0.5 * 0.01, abs=1e-5)
    assert steps[64.0][1] == pytest.approx(steps[1.0][1] - 0.5 * 0.01 * steps[1.0][2], abs=1e-6)


def test_class_weights_are_computed_read_from_a_file_and_used(workplace, digits, small_cnn):
    labels = np.array([0] * 6 + [1] * 2)
    assert class_weights("none", labels, ("a", "b")) is None
    assert class_weights("balanced", labels, ("a", "b")) == pytest.approx([8 / 12, 8 / 4])
    assert class_weights('{"b": 3}', labels, ("a", "b")) == pytest.approx([1, 3])
    rows = Batches(np.zeros((8, 1)), labels, 8, weights=np.array([1.0, 3.0], "float32"))
    assert rows[0][2].tolist() == [1] * 6 + [3] * 2
    # All weight on one class: nothing else is learnt.
    (workplace / "only.json").write_text(json.dumps({name: float(name == "3") for name in digits.class_names}))
    recipe = dataclasses.replace(small_cnn, class_weights="only.json", learning_rate=0.02, epochs=3)
    result = train_model(recipe)
    assert (result.test.predicted == 3).mean() > 0.95
    assert json.loads(result.recipe.class_weights)["3"] == 1.0
    (workplace / "wrong.json").write_text('{"cats": 1}')
    for given, message in (("wrong.json", "Received: 'cats'"), ("missing.json", "an existing JSON file")):
        with pytest.raises(cnnlab.ArgumentError, match=message):
            train_model(dataclasses.replace(recipe, class_weights=given))


def test_augmentations_by_name_and_strength():
    assert parse_augment("none") == {}
    assert list(parse_augment("full")) == ["flip", "shift", "rotate", "zoom"]
    assert parse_augment("cutout+crop:0.06, flip") == {"flip": None, "crop": 0.06, "cutout": 0.25}
    for text, message in (
        ("flip:2", "no strength with flip"),
        ("crop:2", "above 0 and at most 1"),
        ("crop:nan", "above 0 and at most 1"),
        ("cutot", "Did you mean 'cutout'"),
        ("altflip,flip", "Expected flip or altflip"),
        ("", "Received: ''"),
    ):
        with pytest.raises(cnnlab.ArgumentError, match=message):
            parse_augment(text)


@pytest.mark.parametrize("name", ["flip", "shift", "crop", "rotate", "zoom", "color", "randaugment", "cutout"])
def test_each_augmentation_changes_pictures_within_their_range(name, digits):
    keras.utils.set_random_seed(0)
    images = np.clip(digits.train.images[:8].astype(int) + 20, 0, 235).astype("uint8")
    seen, _ = augment_examples(images, np.eye(10, dtype="float32")[digits.train.labels[:8]], name, 0)
    assert (seen.shape, seen.dtype) == (images.shape, np.uint8)
    changed = (seen != images).any(axis=(1, 2, 3))
    assert changed.sum() >= 3
    if name == "cutout":
        assert ((seen != images).any(axis=3).sum(axis=(1, 2)) <= 8 * 8).all()
    if name == "flip":
        assert (seen[changed] == images[changed][:, :, ::-1]).all()


def test_alternating_pictures_are_mirrored_in_every_second_epoch_half_of_them_at_a_time(digits):
    images, labels = digits.train.images[:21], np.arange(21)  # a label is its picture's number
    batches, epochs = Batches(images, labels, 8, 3, alternating=True), []
    for _ in range(4):
        seen = [batches[i] for i in range(len(batches))]
        assert sorted(np.concatenate([y for _, y in seen])) == list(range(21))
        mirrored = np.zeros(21, bool)
        for x, y in seen:
            mirrored[y] = (x == images[y][:, :, ::-1]).all(axis=(1, 2, 3))
            assert (x[~mirrored[y]] == images[y][~mirrored[y]]).all()
        epochs.append(mirrored)
        batches.on_epoch_end()
    assert epochs[0].sum() in (10, 11)
    for before, after in itertools.pairwise(epochs):
        assert (before == ~after).all()
    shown = [augment_examples(images[:4], np.eye(4, dtype="float32"), "altflip", seed)[0] for seed in (0, 1)]
    both = np.stack([images[:4], images[:4, :, ::-1]])
    assert (shown[0] == both[[1, 0, 1, 0], range(4)]).all()
    assert (shown[1] == both[[0, 1, 0, 1], range(4)]).all()


def test_a_training_alternates_by_the_epoch(small_cnn, digits, monkeypatch, workplace):
    seen, as_it_is = [], Batches.__getitem__

    def watched(self, i):
        seen.append(as_it_is(self, i))
        return seen[-1]

    monkeypatch.setattr(Batches, "__getitem__", watched)
    recipe = dataclasses.replace(small_cnn, augment="altflip,crop", batch_size=135, epochs=3)
    model = cnnlab.build_model(recipe, digits)
    assert [layer.name for layer in model.layers if "random" in layer.name] == ["random_crop"]
    trainer.train(model, digits, recipe, quiet=True)
    epochs = [x for x, _ in seen[-3:]]  # Keras looks at the first batch before it starts
    assert (epochs[0] == epochs[1][:, :, ::-1]).all()
    assert (epochs[0] == epochs[2]).all()
    assert 60 <= (epochs[0] != digits.train.images).any(axis=(1, 2, 3)).sum() <= 68


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_labels_go_with_mixed_pictures(name):
    images = np.zeros((16, 32, 32, 3), "uint8")
    images[8:] = 200
    labels = np.repeat(np.eye(2, dtype="float32"), 8, axis=0)
    keras.utils.set_random_seed(0)
    mixed, shares = Batches(images, labels, 16, seed=0, mixing=mixing_layers(name, seed=1))[0]
    assert mixed.dtype == np.uint8
    assert shares.sum(axis=1) == pytest.approx(np.ones(16), abs=1e-5)
    assert mixed.mean(axis=(1, 2, 3)) / 200 == pytest.approx(shares[:, 1], abs=0.06)
    assert ((shares > 0.05) & (shares < 0.95)).any()


def test_incompatible_options_are_refused():
    for fields, message in (
        ({"schedule": "plateau", "warmup": 0.1}, "no warmup with schedule plateau"),
        ({"schedule": "plateau", "val_fraction": 0}, "val_fraction above 0 with schedule plateau"),
        (
            {"model": "vgg16", "fine_tune": 1, "layer_decay": 0.5, "bias_lr_scale": 64.0},
            "Expected bias_lr_scale or layer_decay",
        ),
        ({"ema": 0.9, "lookahead": 0.8}, "Expected ema or lookahead"),
        ({"model": "resnet9", "ema": 0.9, "progressive_resizing": 0.5}, "Expected ema or progressive_resizing"),
        ({"model": "resnet9", "epochs": 1, "progressive_resizing": 0.5}, "2 epochs or more with progressive_resizing"),
        ({"model": "resnet9", "stored_size": 64, "progressive_resizing": 0.5}, "stored_size 64 and image_size 32"),
        ({"optimizer": "adam", "momentum": 0.9}, "no momentum with another optimizer than sgd and muon"),
        ({"model": "vgg16", "fine_tune_from": "all"}, "fine_tune, a number of epochs, with fine_tune_from"),
        ({"model": "vgg16", "fine_tune": 1, "layer_decay": 0.5, "schedule": "plateau"}, "no layer_decay with schedule"),
    ):
        with pytest.raises(cnnlab.ArgumentError, match=message):
            cnnlab.Recipe(**fields)


def test_muon_takes_steps_of_convolutions_that_are_near_to_orthogonal():
    images = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(6, 3, use_bias=False)(images)
    x = keras.layers.DepthwiseConv2D(3, use_bias=False)(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax", name="probabilities")(x))
    compile_model(model, 0.01, optimizer="muon")
    before = [weight.numpy() for weight in model.trainable_variables]
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(32, 8, 8, 4)), rng.integers(0, 3, 32), batch_size=32, verbose=0)
    steps = [was - weight.numpy() for was, weight in zip(before, model.trainable_variables, strict=True)]
    lengths = np.linalg.svd(steps[0].reshape(36, 6), compute_uv=False) / (0.01 * 0.2 * 36**0.5)
    assert (lengths.min(), lengths.max()) == pytest.approx((0.95, 0.95), abs=0.35)  # as near as five iterations come
    # AdamW's first step is the rate, whatever the gradient.
    for step in steps[1:3]:
        assert np.abs(step) == pytest.approx(np.full(step.shape, 0.01), rel=0.05)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon"])
def test_every_optimizer_decays_convolutions(optimizer):
    images = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(images))
    model = keras.Model(images, keras.layers.Dense(2, activation="softmax")(x))
    kernels = []
    for decay in (0.0, 0.5):
        compile_model(model, 0.01, optimizer=optimizer, weight_decay=decay)
        model.set_weights([np.ones(weight.shape, "float32") for weight in model.weights])
        model.fit(np.zeros((4, 4, 4, 1)), np.array([0, 1, 0, 1]), verbose=0)  # no gradient in the convolution
        kernels.append(model.trainable_variables[0].numpy())
    assert kernels[0] == pytest.approx(np.ones((3, 3, 1, 2)))
    assert kernels[1] == pytest.approx(np.full((3, 3, 1, 2), 1 - 0.01 * 0.5))


def resolved(**fields):
    return cnnlab.Recipe(**fields).with_defaults()


def test_defaults_of_another_optimizer_are_its_own():
    muon = resolved(model="resnet9", optimizer="muon")
    assert (muon.learning_rate, muon.momentum, muon.weight_decay, muon.bias_lr_scale) == (0.02, 0.9, 0.15, 1.0)
    assert resolved(optimizer="muon", momentum=0.5).momentum == 0.5
    assert resolved(optimizer="muon").momentum == 0.95
    changed = dataclasses.replace(cnnlab.Recipe(model="resnet9", optimizer="muon"), optimizer="sgd")
    assert changed == cnnlab.Recipe(model="resnet9", optimizer="sgd")


@pytest.mark.parametrize("model", ["cnn", "resnet9", "vgg16"])
def test_what_is_asked_for_wins_over_the_models_defaults(model):
    adam = cnnlab.Recipe(model=model, optimizer="adam")
    assert (adam.with_defaults().momentum, adam.with_defaults().bias_lr_scale) == (None, 1.0)
    assert resolved(model=model, optimizer="adamw", bias_lr_scale=8.0).bias_lr_scale == 8.0
    sgd = dataclasses.replace(adam, optimizer="sgd").with_defaults()
    assert sgd.momentum == resolved(model=model, optimizer="sgd").momentum == {"resnet9": 0.85}.get(model, 0.9)
    assert resolved(model=model, schedule="plateau").warmup is None
    assert resolved(model=model, ema=0.9).lookahead == 0.0
    assert resolved(model=model, fine_tune=1, layer_decay=0.5).bias_lr_scale == 1.0


def test_defaults_follow_the_optimizer_and_the_schedule():
    assert (resolved(optimizer="sgd").learning_rate, resolved(optimizer="sgd").momentum) == (0.01, 0.9)
    assert resolved(optimizer="adamw").weight_decay == 0.004
    assert resolved(optimizer="adamw", weight_decay=0.1).weight_decay == 0.1
    assert resolved(schedule="one-cycle").warmup == 0.3
    resnet9 = resolved(model="resnet9")
    assert (resnet9.optimizer, resnet9.momentum, resnet9.batch_size) == ("sgd", 0.85, 512)
    assert dataclasses.replace(cnnlab.Recipe(model="resnet9"), model="cnn") == cnnlab.Recipe(model="cnn")
    tuned = cnnlab.Recipe(model="vgg16", fine_tune=2)
    used = tuned.with_defaults()
    assert (used.fine_tune_from, used.fine_tune_learning_rate) == ("top", pytest.approx(1e-5))
    slower = dataclasses.replace(tuned, learning_rate=1e-2).with_defaults()
    assert slower.fine_tune_learning_rate == pytest.approx(1e-3)


def test_no_data_set_of_a_training_is_tuned(small_cnn, digits, monkeypatch, workplace):
    tuned, plain = [], tf.data.Dataset.__iter__

    def seen(dataset):
        tuned.append(dataset.options().autotune.enabled)
        return plain(dataset)

    monkeypatch.setattr(tf.data.Dataset, "__iter__", seen)
    recipe = dataclasses.replace(small_cnn, epochs=2)
    trainer.train(cnnlab.build_model(recipe, digits), digits, recipe, quiet=True)
    assert len(tuned) >= 6  # of each epoch the pictures and the validation; two predictions
    assert set(tuned) == {False}
    assert tf.data.Dataset.__iter__ is seen

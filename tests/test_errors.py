"""Test what error messages suggest for mistyped names: pytest tests/test_errors.py"""

from pathlib import Path

import pytest

import cnnlab
from cnnlab.classify import list_pictures
from cnnlab.data.builtin_sets import is_folder
from cnnlab.errors import did_you_mean
from cnnlab.models import custom_model, pretrained
from cnnlab.models.augmentation import parse_augment


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *{"efficientnetv2": "efficientnetv2b0", "EfficientNet-V2-B0": "efficientnetv2b0", "resnet": "resnet9"}.items(),
        *{"convnext": "convnexttiny", "mobilenet_v2": "mobilenetv2", "reset9": "resnet9", "vgg": "vgg16"}.items(),
    ],
)
def test_the_nearest_model_and_of_several_the_smallest_is_suggested(name, meant):
    with pytest.raises(cnnlab.ArgumentError, match=rf"Received: '{name}'\. Did you mean '{meant}'\?"):
        cnnlab.Recipe(model=name)


def test_what_is_like_nothing_gets_no_suggestion():
    assert did_you_mean("quux", ["cifar10", "mnist"]) == did_you_mean("", ["mnist"]) == ""


@pytest.mark.parametrize(
    ("check", "name", "meant"),
    [
        (is_folder, "my_picture", "my_pictures"),
        (is_folder, "./my_picture", "my_pictures"),
        (is_folder, "my_picture/rad", "my_pictures/red"),
        (is_folder, "fashion-mnist", "fashion_mnist"),
        (is_folder, "cifar", "cifar10"),
        (parse_augment, "flipp", "flip"),
        (custom_model.load, "my_model.py:build_net", "my_models.py"),
        (lambda name: pretrained.load_backbone(name, None, None), "net.kears", "net.keras"),
        (lambda name: pretrained.load_backbone("vgg16", name, 32), "wieghts.h5", "weights.h5"),
        (cnnlab.load_classifier, "nett.keras", "net.keras"),
        (lambda name: list_pictures([name]), "my_pictures/rad/0.png", "my_pictures/red/0.png"),
        (lambda name: cnnlab.load_dataset("my_pictures", labels=name), "label.csv", "labels.csv"),
        (lambda name: cnnlab.Recipe(**{name: 3}), "epoch", "epochs"),
        (lambda name: cnnlab.Recipe(**{name: "pad"}), "fit", "resize_mode"),
    ],
)
def test_mistyped_names_are_answered_with_what_lies_in_the_folder_or_is_known(check, name, meant, workplace):
    Path("my_pictures/red").mkdir(parents=True)
    for file in ("my_pictures/red/0.png", "my_models.py", "net.keras", "weights.h5", "labels.csv", "my_pictures.txt"):
        Path(file).touch()
    with pytest.raises(cnnlab.ArgumentError, match=rf"Did you mean '{meant}'\?"):
        check(name)

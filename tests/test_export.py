"""Test exporting runs and registered models: pytest tests/test_export.py"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import cnnlab
from cnnlab import export, train
from cnnlab.cli.main import cli
from cnnlab.models import export_formats, pretrained
from cnnlab.tracking import model_registry, promotion
from tests.helpers.exports import read_about


@pytest.fixture
def run(store, small_cnn):
    return train.train_model(dataclasses.replace(small_cnn, augment="flip,crop"))


def test_the_champion_is_exported_to_files_that_were_checked(run, digits):
    version, _ = model_registry.register_run(run.run_id, name="digits")
    promotion.promote(version)
    for file_format in ("keras", "saved_model"):
        done = CliRunner().invoke(cli, ["export", "--format", file_format], catch_exceptions=False)
        assert done.exit_code == 0
        assert f"accuracy {run.test_accuracy:.2%} then, {run.test_accuracy:.2%} now" in done.output
        path = Path("digits-v1" + export_formats.ENDINGS[file_format])
        answers = export_formats.open_model(path, file_format)(digits.test.images)
        assert np.abs(answers - run.test.probabilities).max() < 1e-5
        about = read_about(path, file_format)
        assert (about["model"], about["run_id"], about["image_size"]) == ("models:/digits/1", run.run_id, 32)
        assert tuple(about["class_names"]) == digits.class_names
    with pytest.raises(cnnlab.LabError, match=r"Expected a path that is free. Received: 'digits-v1.keras'"):
        export.export_model(file_format="keras")
    again = cnnlab.load_classifier("digits-v1.keras")  # which is what the exported file is, without the store
    assert again.probabilities(digits.test.images) == pytest.approx(run.test.probabilities, abs=1e-5)
    assert (again.class_names, again.image_size) == (digits.class_names, 32)
    backbone = pretrained.load_backbone("digits-v1.keras", None, None).model
    assert backbone.layers[-1].name == "pool2"  # the model inside, without its head
    assert backbone.layers[1].name == cnnlab.load_classifier().model.layers[1].name
    exported = export.export_model("digits-v1.keras", "saved_model", "served/1")  # whose folder it makes
    assert (exported.from_run, exported.accuracy) == (pytest.approx(0, abs=1e-5), run.test_accuracy)
    with pytest.raises(cnnlab.ArgumentError, match=f"Register that: cnnlab register {run.run_id}"):
        cnnlab.register_run("digits-v1.keras")


def test_differences_from_the_run_are_told(store, small_cnn, monkeypatch):
    run = train.train_model(dataclasses.replace(small_cnn, precision="mixed_bfloat16", epochs=1))
    done = export.export_model(run.run_id, "keras", "one.keras")
    assert done.difference == 0
    assert 0 < done.from_run < 0.05
    assert "made in half precision, the file in float32" in done.lines[1]

    def gone(recipe):
        raise cnnlab.LabError("Expected a folder. Received: none")

    right = export_formats.open_model
    with monkeypatch.context() as patched:
        patched.setattr(export, "load_for", gone)
        done = export.export_model(run.run_id, "keras", "two.keras")
    assert "On 64 crops of sample photographs, as the run's pictures cannot be had (Expected a folder" in done.lines[1]
    assert (done.difference, done.accuracy) == (0, None)
    before = set(Path.cwd().iterdir())
    monkeypatch.setattr(export_formats, "open_model", lambda *at: lambda images: right(*at)(images) + np.float32(1e-3))
    with pytest.raises(cnnlab.LabError, match=r"a probability that differs by 0.001 on the 37"):
        export.export_model(run.run_id, "keras")
    assert set(Path.cwd().iterdir()) == before


def test_incompatible_arguments_of_an_export_are_refused(workplace):
    with pytest.raises(cnnlab.LabError, match=r"Expected int8 with the format litert. Received: onnx"):
        export.export_model(file_format="onnx", int8=True)
    Path("file").touch()
    with pytest.raises(cnnlab.LabError, match=r"Received: 'file/model.keras', and '.*/file' is none"):
        export.export_model(file_format="keras", output="file/model.keras")

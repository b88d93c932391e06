"""Write a trained model as ONNX, LiteRT, TensorFlow SavedModel or Keras, and run what was written."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cnnlab.errors import LabError, expecting
from cnnlab.models.inference_graph import inference_model
from cnnlab.models.safe_loading import DESCRIPTION, LABELS
from cnnlab.utils.signals import signals_held
from cnnlab.utils.startup import quiet
from cnnlab.utils.text import escape_control_characters

Images = npt.NDArray[np.uint8]  # (N, H, W, 3)
Predict = Callable[[Images], npt.NDArray[np.float32]]  # to (N, num_classes) probabilities

ENDINGS: dict[str, str] = {"onnx": ".onnx", "litert": ".tflite", "saved_model": "", "keras": ".keras"}
# The packages that a format needs, those of the extra of that name.
PACKAGES: dict[str, tuple[str, ...]] = {"onnx": ("onnx", "tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}


def expect_packages(file_format: str) -> None:
    """Raise `LabError` where packages that a format needs are not installed."""
    for name in PACKAGES.get(file_format, ()):
        if importlib.util.find_spec(name) is None:
            raise LabError(
                f"Expected the packages that write and run {file_format}. Received: no {name.replace('_', '-')}. "
                f"Install them: pip install 'cnnlab[{file_format}]'."
            )


def write_model(
    model: keras.Model, path: str | Path, file_format: str, about: dict[str, Any], calibration: Images | None = None
) -> None:
    """Write a trained model for inference.

    ONNX carries `about` as its metadata. LiteRT and Keras files have `cnnlab.json` and `labels.txt` in the zip archive
    at their end, where LiteRT's tools look for labels; a SavedModel has them in its folder `assets.extra`.

    Args:
        model: `keras.Model` from `(N, H, W, 3) uint8` to probabilities.
        path: of the file, or of a SavedModel's folder, which is created.
        file_format: one of `ENDINGS`.
        about: JSON-able values by name, "class_names" among them.
        calibration: `(M, H, W, 3) uint8`, pictures whose activations set the ranges of a LiteRT file of 8-bit integers.

    Raises:
        LabError: the format has no operation for a layer of the model.
    """
    path = Path(path)
    cure = "Use another format: keras and saved_model take every model."
    with expecting(f"the model to be convertible to {file_format}", cure), signals_held(), quiet():
        _WRITERS[file_format](model, path, calibration)
    if file_format == "onnx":
        _describe_onnx(path, about)
        return
    texts = {
        DESCRIPTION: json.dumps(about, indent=2),
        LABELS: "".join(f"{escape_control_characters(n)}\n" for n in about["class_names"]),
    }
    if path.is_dir():
        for name, text in texts.items():
            extra = path / "assets.extra" / name
            extra.parent.mkdir(exist_ok=True)
            extra.write_text(text, encoding="utf-8")
    else:
        with zipfile.ZipFile(path, "a") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)


def open_model(path: str | Path, file_format: str) -> Predict:
    """Open a written model in its own runtime.

    Returns:
        A function from images `(N, H, W, 3) uint8` to probabilities `(N, num_classes) float32`, which raises `LabError`
        where the runtime fails.

    Raises:
        LabError: the runtime does not take the file.
    """

    def run(function: Callable[[Any], Any], argument: Any) -> Any:
        with expecting(f"the {file_format} file to run", "Use another format."), quiet():
            return function(argument)

    opened = run(_OPENERS[file_format], str(path))
    return lambda images: run(opened, images)


def _write_onnx(model: keras.Model, path: Path, calibration: Images | None) -> None:
    _register_erfc()
    shape = (None, *model.input_shape[1:])
    # Without a signature Keras needs a model that was called before.
    signature = [keras.InputSpec(shape=shape, dtype="uint8", name="images")]
    inference_model(model, portable=True).export(path, format="onnx", input_signature=signature, verbose=False)


def _write_litert(model: keras.Model, path: Path, calibration: Images | None) -> None:
    # Without TensorFlow's own operations, which LiteRT's package does not have.
    options: dict[str, Any] = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if calibration is not None:
        whole_range = calibration[:1].copy()
        whole_range[:, 0, :2] = [[0], [255]]

        def pictures() -> Iterator[list[npt.NDArray[np.float32]]]:
            # A black and a white pixel make a step of the input 1, so that it takes pixels as they are.
            for images in (whole_range, *np.split(calibration, len(calibration))):
                yield [images.astype("float32")]

        options = {
            "target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]},
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": pictures,
            "inference_input_type": tf.uint8,
        }
    converted = inference_model(model, portable=True, float_input=calibration is not None)
    converted.export(path, format="litert", verbose=False, **options)


def _open_onnx(path: str) -> Predict:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _open_litert(path: str) -> Predict:
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    interpreter = Interpreter(path)
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def predict(images: Images) -> npt.NDArray[np.float32]:
        interpreter.resize_tensor_input(given, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return interpreter.get_tensor(answer)

    return predict


def _open_saved_model(path: str) -> Predict:
    loaded: Any = tf.saved_model.load(path)
    return lambda images: loaded.serve(images).numpy()


_WRITERS: dict[str, Callable[[keras.Model, Path, Images | None], Any]] = {
    **{"onnx": _write_onnx, "litert": _write_litert},
    "saved_model": lambda model, path, _: inference_model(model).export(path, format="tf_saved_model", verbose=False),
    "keras": lambda model, path, _: inference_model(model).save(path),
}
_OPENERS: dict[str, Callable[[str], Predict]] = {
    **{"onnx": _open_onnx, "litert": _open_litert, "saved_model": _open_saved_model},
    "keras": lambda path: keras.models.load_model(path).predict_on_batch,  # pyright: ignore
}


def _describe_onnx(path: Path, about: dict[str, Any]) -> None:
    """Name the batch dimension of an ONNX file, and write values as its metadata."""
    import onnx  # pyright: ignore[reportMissingImports]

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"  # tf2onnx numbers the unknown ones
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    onnx.save(model, path)


def _register_erfc() -> None:
    """Register a conversion of Erfc, of which TensorFlow makes GELU, with tf2onnx 1.17, which has none: 1 - Erf."""
    from tf2onnx.handler import tf_op  # pyright: ignore[reportMissingImports]

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_9(cls, graph: Any, node: Any, **_: Any) -> None:
            shapes, dtypes = node.output_shapes, node.output_dtypes
            one = graph.make_const(f"{node.name}_one", np.ones((), np.float32)).output[0]
            erf = graph.make_node("Erf", [node.input[0]]).output[0]
            graph.remove_node(node.name)
            graph.make_node("Sub", [one, erf], name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes)

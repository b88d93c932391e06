"""Read what an export wrote beside the model, for tests."""

import json
import zipfile
from pathlib import Path

from cnnlab.models.safe_loading import DESCRIPTION


def read_about(path, file_format):
    """The values that `write_model` wrote with a model."""
    if file_format == "onnx":
        import onnx

        props = onnx.load(path, load_external_data=False).metadata_props
        return {prop.key: json.loads(prop.value) for prop in props}
    if Path(path).is_dir():
        return json.loads(Path(path, "assets.extra", DESCRIPTION).read_text(encoding="utf-8"))
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(DESCRIPTION))

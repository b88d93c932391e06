"""Define the names of the tags and metrics of stored runs, with their length limits, and write filters of a tag."""

import re
from collections.abc import Mapping

# Every tag of ours starts with this, so that it stands apart from MLflow's own.
TAG = "cnnlab."
BEST = "final_val_accuracy"  # what "the best run" means: of the weights that the model ended with
TRAINING = "training"  # the tag with a hash of recipe and data; a training with the same hash can resume the run
RECORDED_AS = TAG + "recorded_as"  # on a run, a model or a version that was copied here: its id where it was made
KNOWN_AS = TAG + "known_as"  # on a copy of a copy: the ids in between, each after a space
UNDELIVERED = TAG + "undelivered"  # on a copy that is not whole yet: where the rest is
FAILED = TAG + "failed"  # on a comparison: models whose training failed, and why; an equal comparison resumes it
DESCRIPTION = "mlflow.note.content"  # the tag with the Markdown that MLflow's UI shows first
DATA_NAME, RUN_NAME = 240, 250  # characters, of the 256 and 250 that MLflow's databases have of experiments and runs
STATE = "training_state.npz"  # the artifact from which a finished run is trained for more epochs
MODEL_SOURCE = "model_source.py"  # the artifact with a function of the user's


def matches(key: str, value: object) -> str:
    """A condition of MLflow's filters: that `key` is `value`, whatever quotes the value holds."""
    value = str(value)
    if "'" not in value:
        return f"{key} = '{value}'"
    if '"' not in value:
        return f'{key} = "{value}"'
    # MLflow has no way to write both: any character there. To some databases a backslash says something, too.
    pattern = re.sub(r"['\\]", "_", value)
    return f"{key} LIKE '{pattern}'"


def our_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Our own among the tags of a run or a model version, without their prefix."""
    return {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}

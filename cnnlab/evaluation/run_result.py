"""Hold the results of one run as plain data: id, recipe, history, predictions, parameter counts and times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cnnlab.evaluation.predictions import Predictions
from cnnlab.recipe import ResolvedRecipe


@dataclass(frozen=True)
class RunResult:
    """What a run gave, as plain data.

    Attributes:
        recorded_id: the id under which the run was recorded.
        name: the run's name.
        recipe: what was trained.
        dataset_name, class_names: of the data set.
        history: per-epoch metrics as Keras gives them, `{"loss": [...], "val_accuracy": [...], ...}`.
        test, validation: `Predictions` of the finished model; `None` for a split that was kept out, as in a search.
        params, trainable_params: numbers of weights.
        train_seconds: spent in `fit` (and in the pass through the frozen layers before it).
        total_seconds: from opening the run to closing it.
        recorded_model_uri: `models:/m-...` as it was recorded, or `None`.
        kept_epoch: the epoch, from 1, whose weights the finished model has; `None` of runs of earlier versions.
        stage_borders: numbers of epochs after which another stage of the training begins.
        id_to_show: gives for a recorded id or address the one by which the user finds the run or model now: that of
            a server differs from the recorded one, and is known when the server has the run.
    """

    recorded_id: str
    name: str
    recipe: ResolvedRecipe
    dataset_name: str
    class_names: tuple[str, ...]
    history: dict[str, list[float]]
    test: Predictions | None
    validation: Predictions | None
    params: int
    trainable_params: int
    train_seconds: float
    total_seconds: float
    recorded_model_uri: str | None
    kept_epoch: int | None = None
    stage_borders: tuple[int, ...] = ()
    id_to_show: Callable[[str], str] = field(default=str, repr=False, compare=False)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.id_to_show(self.recorded_id)

    @property
    def model_uri(self) -> str | None:
        """`models:/m-...`, for `mlflow.keras.load_model` and `mlflow.pyfunc.load_model`, or `None`."""
        return self.recorded_model_uri and self.id_to_show(self.recorded_model_uri)

    @property
    def tested(self) -> Predictions:
        """Predictions of the test images, of a run that was tested."""
        assert self.test, "the run was not tested"
        return self.test

    @property
    def test_accuracy(self) -> float:
        """Accuracy of the finished model on the test images, 0..1."""
        return self.tested.accuracy

    @property
    def test_loss(self) -> float:
        """Cross-entropy of the finished model on the test images."""
        return self.tested.loss

"""What a run gave."""

from dataclasses import dataclass

from cnnlab.evaluation.predictions import Predictions
from cnnlab.recipe import Recipe


@dataclass(frozen=True)
class RunResult:
    """What a run gave, as plain data.

    Attributes:
        run_id: MLflow's.
        name: the run's name.
        recipe: what was trained.
        dataset_name, class_names: of the data set.
        history: per-epoch metrics as Keras gives them, `{"loss": [...], "val_accuracy": [...], ...}`.
        test, validation: `Predictions` of the finished model; `None` where the part was kept out, as in a search.
        params, trainable_params: numbers of weights.
        train_seconds: spent in `fit` (and in the pass through the frozen layers before it).
        total_seconds: from opening the run to closing it.
        stage_borders: numbers of epochs after which another stage of the training begins.
        model_uri: `models:/m-...`, for `mlflow.keras.load_model` and `mlflow.pyfunc.load_model`, or `None`.
    """

    run_id: str
    name: str
    recipe: Recipe
    dataset_name: str
    class_names: tuple[str, ...]
    history: dict
    test: Predictions | None
    validation: Predictions | None
    params: int
    trainable_params: int
    train_seconds: float
    total_seconds: float
    model_uri: str | None
    stage_borders: tuple[int, ...] = ()

    @property
    def test_accuracy(self) -> float:
        return self.test.accuracy

    @property
    def test_loss(self) -> float:
        return self.test.loss

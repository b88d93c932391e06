"""Register the models of runs in MLflow's model registry, one name for each data set, and list the versions.

Tags of a version describe it. Its model card, and the predictions that a promotion compares, lie beside the model.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from cnnlab.errors import ArgumentError, LabError, did_you_mean, expect_one_of
from cnnlab.evaluation.model_card import model_card
from cnnlab.evaluation.predictions import PREDICTIONS_FILE, Score, save_predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.evaluation.score_names import SCORES
from cnnlab.recipe import renamed_fields
from cnnlab.tracking import logged_models as stored_models
from cnnlab.tracking import run_logging, run_queries
from cnnlab.tracking.pagination import paginate
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.tag_names import BEST, TAG, matches, our_tags
from cnnlab.utils.text import escape_control_characters, markdown

CHAMPION = "champion"
RUN_ONLY = (TAG + "process", TAG + "kind", TAG + "label")  # tags that say nothing of the model


@dataclass(frozen=True)
class Version:
    """One version of a registered model: `name`, `number`, `run_id`, `aliases`, and our `tags` without their prefix."""

    name: str
    number: int
    run_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


@opened_store()
def register_run(
    run_id: str | None = None, *, experiment: str | None = None, name: str | None = None, by: Score = "accuracy"
) -> tuple[Version, list[str]]:
    """Register a run's model, or find the version that it already is.

    Args:
        run_id: whole or its first characters; `None` takes the best run by validation score.
        experiment: where to look for the best one; the one used last by default.
        name: of the registered model; that of the run's experiment by default, so one for each data set.
        by: one of `SCORES`, which says what the best run is.

    Returns:
        The version, and sentences about how it was chosen.

    Raises:
        LabError: the run is unknown, failed, or has no model.

    Example:
        cnnlab.train_model(cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1))
        version, reasons = cnnlab.register_run()  # the best run by validation accuracy
        print(version, reasons)
    """
    expect_one_of("by", by, SCORES)
    client = mlflow.MlflowClient()
    if run_id and run_id.endswith(".keras"):
        raise ArgumentError(
            f"Expected a run, whose predictions a promotion compares. Received: '{run_id}', exported from run "
            f"{(exported := stored_models.origin(run_id)[1])}. Register that: cnnlab register {exported}."
        )
    run = run_queries.find_finished_run(run_id) if run_id else run_queries.best_run(experiment, by)
    result = run_queries.read_result(run)
    experiment = client.get_experiment(run.info.experiment_id).name
    said = []
    if not run_id:
        score = run.data.metrics[f"final_val_{by}"]
        said.append(f"Best of {experiment} by validation {by.replace('_', ' ')}: {run.info.run_name}, {score:.2%}.")
    if run.data.tags[f"{TAG}validation"] == "test set":
        said.append("It was validated on the test set, so its validation score is a test score.")
    name = legal_name(name or experiment)
    for version in list_versions(name):
        if version.run_id == run.info.run_id:
            return version, [*said, f"It is {version} already."]
    assert result.model_uri  # as of every run that was tested
    stored_models.load(result.model_uri)  # one that does not load again must not become the champion
    with contextlib.suppress(mlflow.MlflowException):  # it is there already
        client.create_registered_model(
            name, description=f"Classifiers of {markdown(result.dataset_name)} images, by cnnlab."
        )
    return _new_version(client, name, run, result, result.model_uri), said


def _new_version(client: mlflow.MlflowClient, name: str, run: Run, result: RunResult, model_uri: str) -> Version:
    """Put the model card and the predictions beside a run's model, and make a version of it."""
    params = renamed_fields(run.data.params)
    tags = {
        **{key: value for key, value in run.data.tags.items() if key.startswith(TAG) and key not in RUN_ONLY},
        TAG + "recipe": json.dumps({k: v for k, v in params.items() if k in result.recipe.params()})[:5000],
        TAG + "classes": json.dumps(result.class_names)[:5000],
        **{TAG + key: f"{run.data.metrics[key]:.4f}" for key in ("test_accuracy", "test_loss", BEST)},
    }
    card = model_card(result, our_tags(run.data.tags))
    # With its predictions, so that it can be compared when its run is deleted.
    splits = {name: p for name, p in (("val", result.validation), ("test", result.test)) if p is not None}
    predictions = {PREDICTIONS_FILE: lambda path: save_predictions(path, result.class_names, **splits)}
    run_logging.log_model_texts(model_uri, {stored_models.CARD_FILE: card}, predictions)
    made = client.create_model_version(
        name,
        source=model_uri,
        run_id=run.info.run_id,
        tags=tags,
        description=card.split("\n## ")[0],
        model_id=model_uri.removeprefix("models:/"),
    )
    return _version(client.get_model_version(name, made.version), aliases={})


def champion_uri(name: str | None = None) -> str:
    """Return `models:/NAME@champion` of a registered model, or of the only one; raise `LabError` where none has one."""
    name = the_name(name)
    if find_champion(name) is None:
        raise LabError(
            f"Expected {name} to have a champion. Received: none. Promote one with 'cnnlab register --promote', or "
            f"name a version, models:/{name}/1."
        )
    return f"models:/{name}@{CHAMPION}"


def list_versions(name: str | None = None) -> list[Version]:
    """Return all versions, of one registered model or of all of ours, newest first."""
    client = mlflow.MlflowClient()
    found = paginate(client.search_model_versions, matches("name", name) if name else None)
    found = [v for v in found if f"{TAG}classes" in v.tags and name in (None, v.name)]
    # A search of versions leaves their aliases out.
    aliases = {name: client.get_registered_model(name).aliases for name in {version.name for version in found}}
    versions = [_version(version, aliases[version.name]) for version in found]
    return sorted(versions, key=lambda version: (version.name, -version.number))


def find_champion(name: str) -> Version | None:
    """Return the version that holds the alias `champion`, or `None`."""
    return next((version for version in list_versions(name) if CHAMPION in version.aliases), None)


def names() -> list[str]:
    """Return the names of our registered models, sorted."""
    return sorted({version.name for version in list_versions()})


def the_name(name: str | None = None) -> str:
    """Return a registered model's name, the given or the only one; raise `LabError` where it is not clear which one."""
    known = names()
    if not known:
        raise LabError(
            "Expected a registered model. Received: an empty registry. Use 'cnnlab register' after training."
        )
    if name is None and len(known) == 1:
        return known[0]
    if name not in known:
        received = f"'{name}'.{did_you_mean(name, known)}" if name else "no name, and there are several: give one."
        raise ArgumentError(f"Expected the name of a registered model ({', '.join(known)}). Received: {received}")
    return name


def legal_name(name: str) -> str:
    """Return a name for a registered model, without what MLflow forbids (`/`, `:`) or reads as a part of an address."""
    return re.sub(r"[/:?#@]", "-", escape_control_characters(name)).strip() or "model"


def _version(version: ModelVersion, aliases: dict[str, str]) -> Version:
    held = tuple(alias for alias, number in aliases.items() if int(number) == int(version.version))
    return Version(version.name, int(version.version), version.run_id or "", held, our_tags(version.tags))

"""The registry: one name a data set, a version for each registered run, `@champion` moved on evidence only.

A version's tags say what it is; its model card and the evidence of its promotion lie beside the model.
"""

import contextlib
import json
import re
from dataclasses import asdict, dataclass

import mlflow

from cnnlab.errors import ArgumentError, LabError, first_line
from cnnlab.names import markdown, shown
from cnnlab.results.card import model_card
from cnnlab.results.predictions import PREDICTIONS_FILE, Predictions, load_predictions, save_predictions
from cnnlab.results.predictions import compared as compared_by
from cnnlab.tracking import models as stored_models
from cnnlab.tracking import read, store
from cnnlab.tracking import run as tracked
from cnnlab.tracking.tags import BEST, TAG, matches, our_tags
from cnnlab.tracking.temporary import private_folder

CHAMPION, PREVIOUS = "champion", "previous"
RUN_ONLY = (TAG + "process", TAG + "kind", TAG + "label")  # tags that say nothing of the model
REPLACED = TAG + "replaced"  # on a champion: the version that it took the alias from


@dataclass(frozen=True)
class Version:
    """One version of a registered model: `name`, `number`, `run_id`, `aliases`, and our `tags` without their prefix."""

    name: str
    number: int
    run_id: str
    aliases: tuple[str, ...]
    tags: dict

    def __str__(self):
        return f"{self.name} version {self.number}"


@dataclass(frozen=True)
class Stored:
    """What a version is compared by: its data set's name, class names, and `Predictions`."""

    dataset_name: str
    class_names: tuple[str, ...]
    validation: Predictions
    test: Predictions


@dataclass(frozen=True)
class Decision:
    """Of a promotion: whether the alias was moved, why, in words, and whether the version held it before."""

    promoted: bool
    reason: str
    unchanged: bool = False


def register(run_id=None, *, experiment=None, name=None, by="accuracy") -> tuple[Version, list[str]]:
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
    """
    with store.opened():
        return _register(run_id, experiment, name, by)


def _register(run_id, experiment, name, by):
    client = mlflow.MlflowClient()
    run = read.find_finished_run(run_id) if run_id else read.best_run(experiment, by)
    result = read.read_result(run)
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
    stored_models.load(result.model_uri)  # one that does not load again must not become the champion
    with contextlib.suppress(mlflow.MlflowException):  # it is there already
        client.create_registered_model(
            name, description=f"Classifiers of {markdown(result.dataset_name)} images, by cnnlab."
        )
    tags = {
        **{key: value for key, value in run.data.tags.items() if key.startswith(TAG) and key not in RUN_ONLY},
        TAG + "recipe": json.dumps({k: v for k, v in run.data.params.items() if k in result.recipe.params()})[:5000],
        TAG + "classes": json.dumps(result.class_names)[:5000],
        **{TAG + key: f"{run.data.metrics[key]:.4f}" for key in ("test_accuracy", "test_loss", BEST)},
    }
    card = model_card(result, our_tags(run.data.tags))
    # With its predictions, so that it can be compared when its run is gone.
    predictions = {
        PREDICTIONS_FILE: lambda path: save_predictions(
            path, result.class_names, val=result.validation, test=result.test
        )
    }
    tracked.log_model_texts(result.model_uri, {stored_models.CARD_FILE: card}, predictions)
    made = client.create_model_version(
        name,
        source=result.model_uri,
        run_id=run.info.run_id,
        tags=tags,
        description=card.split("\n## ")[0],
        model_id=result.model_uri.removeprefix("models:/"),
    )
    return _version(client.get_model_version(name, made.version), aliases={}), said


def promote(version, *, by="accuracy", margin=0.0, force=False) -> Decision:
    """Make a version the champion if it beats the present one on the same held-out images.

    On the validation images where both held out the same ones, so that the test set is not used to choose; else on the
    test images, and the reason says so. The interval of the paired difference must lie above `margin`.

    Args:
        version: the challenger, a `Version`.
        by: one of `SCORES`.
        margin: of that score, 0..1.
        force: move the alias whatever the evidence, which is kept all the same.

    Raises:
        LabError: the champion is not comparable (other data or classes), without `force`.
    """
    with store.opened():
        return _promote(version, by, margin, force)


def _promote(version, by, margin, force):
    champion = find_champion(version.name)
    if champion is None:
        return _decide(version, None, Decision(True, f"{version} is the first champion."), {})
    if champion.number == version.number:
        return Decision(False, f"{version} is the champion already.", unchanged=True)
    try:
        challenger, defender = _stored(version), _stored(champion)
    except LabError as error:
        if not force:
            raise LabError(f"{error} Move the alias with --force.") from error
        return _decide(version, champion, Decision(True, f"Forced, not compared: {error}"), {})
    part, remark = _common_part(version, champion, challenger, defender)
    if part is None:
        if not force:
            raise LabError(f"{remark} Register it under another --name, or move the alias with --force.")
        return _decide(version, champion, Decision(True, f"Forced, not compared: {remark}"), {})
    first, second = getattr(challenger, part), getattr(defender, part)
    compared = compared_by(first, second, by)
    where = f"On the same {len(first.labels):,} {part} images{remark}, by {by.replace('_', ' ')}: "
    said = where + compared.in_words(f"version {version.number}", f"champion version {champion.number}") + "."
    better = compared.low > margin
    if not better:
        said += f" The interval's lower end, {100 * compared.low:+.1f} points, is not above {100 * margin:g}."
    if better or force:
        said = f"{'' if better else 'Forced against the evidence. '}{said}"
    facts = {
        "challenger": {"version": version.number, "run_id": version.run_id, **first.scores},
        "champion": {"version": champion.number, "run_id": champion.run_id, **second.scores},
        "images": {"part": part, "count": len(first.labels), "digest": first.digest},
        "by": by,
        "margin": margin,
        "forced": force and not better,
        **asdict(compared),
    }
    return _decide(version, champion, Decision(better or force, said), facts)


def rollback(name) -> tuple[Version, Version]:
    """Undo the last promotion: the champion's predecessor gets the alias back.

    Returns:
        `(from, to)`.

    Raises:
        LabError: there is no champion, or none before it.
    """
    with store.opened():
        return _rollback(name)


def _rollback(name):
    client = mlflow.MlflowClient()
    champion = find_champion(name)
    if champion is None:
        raise LabError(f"Expected {name} to have a champion. Received: none. Use 'cnnlab register --promote'.")
    before = champion.tags.get("replaced")
    if before is None:
        raise LabError(f"Expected a champion before {champion}. Received: it was the first, so nothing is undone.")
    versions = {version.number: version for version in list_versions(name)}
    if int(before) not in versions:
        raise LabError(f"Expected version {before} of {name}, the champion before. Received: it was deleted.")
    old = versions[int(before)]
    client.set_registered_model_alias(name, CHAMPION, old.number)
    client.delete_model_version_tag(name, champion.number, REPLACED)
    if older := old.tags.get("replaced"):
        client.set_registered_model_alias(name, PREVIOUS, older)
    else:
        client.delete_registered_model_alias(name, PREVIOUS)
    return champion, old


def champion_uri(name=None) -> str:
    """`models:/NAME@champion` of a registered model, or of the only one there is.

    Raises:
        LabError: there is none, or none with a champion.
    """
    name = the_name(name)
    if find_champion(name) is None:
        raise LabError(
            f"Expected {name} to have a champion. Received: none. Promote one with 'cnnlab register --promote', or "
            f"name a version with --model models:/{name}/1."
        )
    return f"models:/{name}@{CHAMPION}"


def list_versions(name=None) -> list[Version]:
    """All versions, of one registered model or of all of ours, newest first."""
    client = mlflow.MlflowClient()
    found = store.every(client.search_model_versions, matches("name", name) if name else None)
    found = [v for v in found if f"{TAG}classes" in v.tags and name in (None, v.name)]
    # A search of versions leaves their aliases out.
    aliases = {name: client.get_registered_model(name).aliases for name in {version.name for version in found}}
    versions = [_version(version, aliases[version.name]) for version in found]
    return sorted(versions, key=lambda version: (version.name, -version.number))


def find_champion(name) -> Version | None:
    """The version that holds the alias `champion`, or `None`."""
    return next((version for version in list_versions(name) if CHAMPION in version.aliases), None)


def names() -> list[str]:
    """Of the registered models of ours, sorted."""
    return sorted({version.name for version in list_versions()})


def the_name(name=None) -> str:
    """A registered model's name: the one given, or the only one there is.

    Raises:
        LabError: there is none, or several and none was named, or not that one.
    """
    names_here = names()
    if not names_here:
        raise LabError(
            "Expected a registered model. Received: an empty registry. Use 'cnnlab register' after training."
        )
    if name is None and len(names_here) == 1:
        return names_here[0]
    if name not in names_here:
        received = f"'{name}'" if name else "no name, and there are several: give one"
        raise ArgumentError(f"Expected the name of a registered model ({', '.join(names_here)}). Received: {received}.")
    return name


def legal_name(name) -> str:
    """A name for a registered model, without what MLflow forbids (`/` and `:`) or takes for parts of an address."""
    return re.sub(r"[/:?#@]", "-", shown(name)).strip() or "model"


def _stored(version):
    """What a version was trained and tested on: beside the model, or of its run, which may be gone.

    Raises:
        LabError: neither has its predictions.
    """
    with private_folder("files") as folder:
        try:
            file = mlflow.artifacts.download_artifacts(
                f"models:/{version.name}/{version.number}/{PREDICTIONS_FILE}", dst_path=folder
            )
            class_names, parts = load_predictions(file)
        except (OSError, mlflow.MlflowException):  # registered by an earlier version
            try:
                class_names, parts = read.read_predictions(read.find_finished_run(version.run_id))
            except LabError as error:
                raise LabError(
                    f"Expected {version} to have its predictions. Received none beside the model, and of its run "
                    f"{version.run_id[:8]}: {first_line(error)}."
                ) from error
    return Stored(version.tags.get("dataset", "its data set"), class_names, parts["val"], parts["test"])


def _version(version, aliases):
    held = tuple(alias for alias, number in aliases.items() if int(number) == int(version.version))
    return Version(version.name, int(version.version), version.run_id, held, our_tags(version.tags))


def _common_part(version, champion, challenger, defender):
    """`(part, remark)`: the images both were kept from; `(None, why)` where there are none."""
    if challenger.class_names != defender.class_names:
        return None, (
            f"{champion}, the champion, is not comparable: it names the classes {_some(defender.class_names)}, and "
            f"version {version.number} {_some(challenger.class_names)}."
        )
    if challenger.validation.digest == defender.validation.digest:
        test_too = challenger.validation.digest == challenger.test.digest
        return ("test" if test_too else "validation"), (" (they were validated on, too)" if test_too else "")
    if challenger.test.digest == defender.test.digest:
        return "test", " (they held out other validation images)"
    return None, (
        f"{champion}, the champion, is not comparable: it was tested on {len(defender.test.labels):,} images of "
        f"{defender.dataset_name}, and version {version.number} on {len(challenger.test.labels):,} others of "
        f"{challenger.dataset_name}."
    )


def _some(names):
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _decide(version, champion, decision, facts):
    """Write down what was decided, then move the aliases: `previous` first, so that a kill between keeps a champion."""
    client = mlflow.MlflowClient()
    against = f"v{champion.number}" if champion else "none"
    text = json.dumps({"promoted": decision.promoted, "reason": decision.reason, **facts}, indent=2)
    source = client.get_model_version(version.name, version.number).source
    tracked.log_model_texts(source, {f"evidence/v{version.number}_against_{against}.json": text})
    client.set_model_version_tag(version.name, version.number, TAG + "promotion", decision.reason[:5000])
    if decision.promoted:
        if champion:
            client.set_model_version_tag(version.name, version.number, REPLACED, str(champion.number))
            client.set_registered_model_alias(version.name, PREVIOUS, champion.number)
        client.set_registered_model_alias(version.name, CHAMPION, version.number)
    return decision

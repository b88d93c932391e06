"""Promote a version to `@champion` on the evidence of held-out images, and undo a promotion."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlflow
import numpy as np
from mlflow.artifacts import download_artifacts

from cnnlab.errors import ArgumentError, LabError, expect_one_of, first_line
from cnnlab.evaluation.predictions import PREDICTIONS_FILE, Predictions, Score, load_predictions
from cnnlab.evaluation.predictions import compared as compared_by
from cnnlab.evaluation.score_names import SCORES
from cnnlab.tracking import run_logging, run_queries
from cnnlab.tracking.model_registry import CHAMPION, Version, find_champion, list_versions
from cnnlab.tracking.session import opened_store
from cnnlab.tracking.tag_names import TAG
from cnnlab.utils.argument_types import convert_arguments
from cnnlab.utils.temporary_folders import private_folder

PREVIOUS = "previous"
REPLACED = TAG + "replaced"  # on a champion: the version that it took the alias from


@dataclass(frozen=True)
class Decision:
    """What a promotion did: whether the alias was moved, why, in words, and whether the version held it before."""

    promoted: bool
    reason: str
    unchanged: bool = False


@dataclass(frozen=True)
class Stored:
    """What a version is compared by: its data set's name, class names, and `Predictions`."""

    dataset_name: str
    class_names: tuple[str, ...]
    validation: Predictions
    test: Predictions


@convert_arguments
@opened_store()
def promote(version: Version, *, by: Score = "accuracy", margin: float = 0.0, force: bool = False) -> Decision:
    """Make a version the champion if it beats the present one on the same held-out images.

    On the validation images where both held out the same ones, so that the test set is not used to choose; else on the
    test images, and the reason says so. The interval of the paired difference must lie above `margin`.

    Args:
        version: the challenger, a `Version`.
        by: one of `SCORES`.
        margin: of that score, 0..1.
        force: move the alias whatever the evidence, which is kept all the same.

    Raises:
        LabError: the version diverged in its training; without `force`, the champion has other data or classes.

    Example:
        cnnlab.train_model(cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1))
        version, _ = cnnlab.register_run()
        print(cnnlab.promote(version, force=True).reason)
    """
    expect_one_of("by", by, SCORES)
    if not 0 <= margin <= 1:
        raise ArgumentError(f"Expected margin to be from 0 to 1. Received: {margin}.")
    _expect_finite(version)
    champion = find_champion(version.name)
    if champion is None:
        return _decide(version, None, Decision(True, f"{version} is the first champion."), {})
    if champion.number == version.number:
        return Decision(False, f"{version} is the champion already.", unchanged=True)
    try:
        challenger, defender = _stored(version), _stored(champion)
        if _unknown_images(challenger, defender):
            challenger, defender = _identified(version, challenger), _identified(champion, defender)
    except LabError as error:
        if not force:
            raise LabError(f"{error} Move the alias with force.") from error
        return _decide(version, champion, Decision(True, f"Forced, not compared: {error}"), {})
    part, remark = _common_part(version, champion, challenger, defender)
    if part is None:
        if not force:
            raise LabError(f"{remark} Register it under another name, or move the alias with force.")
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
        "images": {"part": part, "count": len(first.labels), "digest": first.digest, "identity": first.identity},
        "by": by,
        "margin": margin,
        "forced": force and not better,
        **asdict(compared),
    }
    return _decide(version, champion, Decision(better or force, said), facts)


@opened_store()
def rollback(name: str) -> tuple[Version, Version]:
    """Undo the last promotion: the champion's predecessor gets the alias back.

    Returns:
        `(from, to)`.

    Raises:
        LabError: there is no champion, none before it, or that one diverged in its training.
    """
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
    _expect_finite(old)
    client.set_registered_model_alias(name, CHAMPION, str(old.number))
    client.delete_model_version_tag(name, str(champion.number), REPLACED)
    if older := old.tags.get("replaced"):
        client.set_registered_model_alias(name, PREVIOUS, older)
    else:
        client.delete_registered_model_alias(name, PREVIOUS)
    return champion, old


def _stored(version: Version) -> Stored:
    """Read what a version was trained and tested on: beside the model, or of its run, which may be deleted.

    Raises:
        LabError: neither has its predictions.
    """
    with private_folder("files") as folder:
        try:
            file = download_artifacts(
                f"models:/{version.name}/{version.number}/{PREDICTIONS_FILE}", dst_path=str(folder)
            )
            class_names, predictions = load_predictions(file)
        except (OSError, mlflow.MlflowException):  # registered by an earlier version
            try:
                class_names, predictions = run_queries.read_predictions(run_queries.find_finished_run(version.run_id))
            except LabError as error:
                raise LabError(
                    f"Expected {version} to have its predictions. Received none beside the model, and of its run "
                    f"{version.run_id[:8]}: {first_line(error)}."
                ) from error
    return Stored(version.tags.get("dataset", "its data set"), class_names, predictions["val"], predictions["test"])


def _unknown_images(first: Stored, second: Stored) -> bool:
    """Return whether only the files of an earlier version's images would tell that both saw the same ones."""
    shared = [first.validation.shares_images(second.validation), first.test.shares_images(second.test)]
    return first.class_names == second.class_names and not any(shared) and None in shared


def _identified(version: Version, stored: Stored) -> Stored:
    """Add the identity of their images to a version's predictions; raise `LabError` where it cannot be found out."""
    if stored.test.identity:
        return stored
    predictions = {"val": stored.validation, "test": stored.test}
    found = run_queries.identified(run_queries.find_finished_run(version.run_id), predictions)
    return replace(stored, validation=found["val"], test=found["test"])


def _expect_finite(version: Version) -> None:
    """Raise `LabError` where stored predictions of a version are NaN or infinite. Loading its model would be slow."""
    try:
        stored = _stored(version)
    except LabError:  # of an earlier version of cnnlab, whose run was deleted
        return
    if not all(np.isfinite(part.probabilities).all() for part in (stored.validation, stored.test)):
        raise LabError(
            f"Expected {version} to have finite probabilities. Received: NaN or infinity, from a training that "
            "diverged. Promote another version."
        )


def _common_part(version: Version, champion: Version, challenger: Stored, defender: Stored) -> tuple[str | None, str]:
    """Return the split of images that both were kept from, and a remark; `None` and the reason where there is none."""
    if challenger.class_names != defender.class_names:
        return None, (
            f"{champion}, the champion, is not comparable: it names the classes {_some(defender.class_names)}, and "
            f"version {version.number} {_some(challenger.class_names)}."
        )
    if challenger.validation.shares_images(defender.validation):
        test_too = challenger.validation.digest == challenger.test.digest
        return ("test" if test_too else "validation"), (" (they were validated on, too)" if test_too else "")
    if challenger.test.shares_images(defender.test):
        return "test", " (they held out other validation images)"
    return None, (
        f"{champion}, the champion, is not comparable: it was tested on {len(defender.test.labels):,} images of "
        f"{defender.dataset_name}, and version {version.number} on {len(challenger.test.labels):,} others of "
        f"{challenger.dataset_name}."
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _decide(version: Version, champion: Version | None, decision: Decision, facts: dict[str, Any]) -> Decision:
    """Write the decision down, then move the aliases: `previous` first, so that a kill between keeps a champion."""
    client, number = mlflow.MlflowClient(), str(version.number)
    against = f"v{champion.number}" if champion else "none"
    text = json.dumps({"promoted": decision.promoted, "reason": decision.reason, **facts}, indent=2)
    source = client.get_model_version(version.name, number).source
    run_logging.log_model_texts(source or "", {f"evidence/v{version.number}_against_{against}.json": text})
    client.set_model_version_tag(version.name, number, TAG + "promotion", decision.reason[:5000])
    if decision.promoted:
        if champion:
            client.set_model_version_tag(version.name, number, REPLACED, str(champion.number))
            client.set_registered_model_alias(version.name, PREVIOUS, str(champion.number))
        client.set_registered_model_alias(version.name, CHAMPION, number)
    return decision

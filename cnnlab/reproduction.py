"""Train a stored run again from its logged recipe, and compare every number of the new run with the old one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cnnlab.evaluation.predictions import Predictions
from cnnlab.evaluation.run_result import RunResult
from cnnlab.models import custom_model
from cnnlab.recipe import RunOptions
from cnnlab.resolve import build_model, prepare
from cnnlab.tracking import run_queries
from cnnlab.tracking.run_queries import Run
from cnnlab.tracking.session import Session, opened_store
from cnnlab.tracking.tag_names import MODEL_SOURCE, TAG
from cnnlab.train import fit_and_evaluate

# Tags that may explain a difference.
CIRCUMSTANCES = (
    *("dataset_digest", "dataset_identity", "weights_sha256", "backbone_sha256", "model_sha256"),
    *("git_commit", "git_dirty", "batches", "python", "machine", "threads", "devices"),
)
ASSUMED = {TAG + "devices": "1"}  # of runs that do not say


@dataclass(frozen=True)
class Figure:
    """One figure then and now: `name`, the last values, and the largest difference over all epochs or images."""

    name: str
    then: float | None
    now: float | None
    difference: float


@dataclass(frozen=True)
class Reproduction:
    """`run_id` of the new run; `figures`; `changes`, sentences on what else is different; `verdict`, a sentence."""

    run_id: str
    figures: list[Figure]
    changes: list[str]
    verdict: str


@opened_store()
def reproduce(
    run_id: str,
    *,
    deterministic: bool = False,
    dataset: str | Path | None = None,
    weights: str | Path | None = None,
    backbone: str | None = None,
    options: RunOptions | None = None,
) -> Reproduction:
    """Train once more with a stored run's recipe, as a new run, and compare all figures.

    A custom model is built by the source that was stored with the run.

    Args:
        run_id: whole or its first characters.
        deterministic: only operations that repeat bit for bit, also if the run did without.
        dataset, weights, backbone: where the run's folder, weights file and backbone are now, if they were moved.
        options: how the training is carried out.

    Raises:
        LabError: the run is unknown or failed, or its data or weights cannot be had.

    Example:
        recipe = cnnlab.Recipe(dataset="digits", limit=150, filters=(8, 8), epochs=1, deterministic=True)
        again = cnnlab.reproduce(cnnlab.train_model(recipe).run_id)
        print(again.verdict)
    """
    options = options or RunOptions()
    before = run_queries.find_finished_run(run_id)
    # All that is needed of it is read now, so that what is missing is found before an hour of training.
    stored, history = run_queries.read_recipe(before), run_queries.read_history(before)
    if stored.model.startswith(custom_model.GIVEN):
        custom_model.refuse_to_build((), 0)
    source = run_queries.read_text(before, MODEL_SOURCE) if custom_model.is_custom(stored.model) else None
    tested = run_queries.was_tested(before)  # a trial of a search was not
    test = run_queries.read_predictions(before)[1]["test"] if tested else None
    moved = {"dataset": dataset, "weights": weights, "backbone": backbone}
    moved = {name: value for name, value in moved.items() if value}
    recipe = dataclasses.replace(stored, deterministic=stored.deterministic or deterministic, **moved)
    with Session([stored.model], source, options=options) as session:
        [(data, prepared)] = prepare([recipe], options=options)
        session.recorder()
        result = fit_and_evaluate(
            build_model(prepared.recipe, data, options),
            data,
            prepared.recipe,
            run_name=f"{before.info.run_name}, again",
            tags={"reproduces": before.info.run_id, **({} if tested else {"kind": "trial"}), **prepared.tags},
            splits=("val", "test") if tested else ("val",),
            options=options,
        )
        after = run_queries.find_finished_run(result.run_id)
    figures = _figures(history, test, result)
    lost = [
        f"{name}: {len(values)} epochs recorded then, {len(result.history[name])} now: not compared"
        for name, values in history.items()
        if len(values) != len(result.history[name])
    ]
    return Reproduction(result.run_id, figures, lost + _changes(before, after), _verdict(figures))


def _figures(history: dict[str, list[float]], test: Predictions | None, result: RunResult) -> list[Figure]:
    """Compare the curves, of as many epochs, and the test scores and probabilities of two runs."""
    figures = [
        Figure(name, values[-1], result.history[name][-1], _largest_difference(values, result.history[name]))
        for name, values in history.items()
        if len(values) == len(result.history[name])
    ]
    if test and result.test:
        for name in ("accuracy", "loss"):
            then, now = getattr(test, name), getattr(result.test, name)
            figures.append(Figure(f"test_{name}", then, now, abs(then - now)))
        difference = _largest_difference(test.probabilities, result.test.probabilities)
        figures.append(Figure("test probabilities", None, None, difference))
    return figures


def _largest_difference(then: npt.ArrayLike, now: npt.ArrayLike) -> float:
    then, now = np.asarray(then, float), np.asarray(now, float)
    return float(np.abs(then - now).max()) if then.shape == now.shape else float("inf")


def _changes(before: Run, after: Run) -> list[str]:
    names = [TAG + name for name in CIRCUMSTANCES]
    names += sorted({tag for run in (before, after) for tag in run.data.tags if tag.startswith(TAG + "version.")})
    identity = TAG + "dataset_identity"  # which earlier versions did not record
    assumed = {**ASSUMED, identity: after.data.tags.get(identity)}
    then, now = ({**assumed, **run.data.tags} for run in (before, after))
    pairs = [(name, then.get(name), now.get(name)) for name in names]
    params = before.data.params, after.data.params
    pairs += [(name, *(some.get(name) for some in params)) for name in ("deterministic", "precision")]
    return [
        f"{name.removeprefix(TAG).removeprefix('version.')}: {then or 'not recorded'} then, {now or 'not recorded'} now"
        for name, then, now in pairs
        if then != now
    ]


def _verdict(figures: Sequence[Figure]) -> str:
    different = [figure for figure in figures if figure.difference]
    if not different:
        return f"All {len(figures)} figures are equal bit for bit."
    worst = max(different, key=lambda figure: figure.difference)
    return (
        f"{len(figures) - len(different)} of {len(figures)} figures are equal, {len(different)} differ, "
        f"by at most {worst.difference:.3g} ({worst.name})."
    )

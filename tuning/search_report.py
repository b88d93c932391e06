"""Report a search: print a line for each trial, and make the table and figures of the parent run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cnnlab.evaluation import plots
from cnnlab.tuning.search_settings import OBJECTIVES, Search
from cnnlab.tuning.trial_recipes import in_effect
from cnnlab.utils.text import csv_line
from cnnlab.utils.worker_pool import last_line

BEST = "best_so_far.png"
FINISHED = ("COMPLETED", "FAILED")


def best_first(trials: Iterable[Any], objective: str) -> list[Any]:
    """The completed ones of trials, the best of them first."""
    completed = [trial for trial in trials if trial.status == "COMPLETED"]
    return sorted(completed, key=lambda trial: trial.score, reverse=OBJECTIVES[objective] == "max")


def trial_line(oracle: Any, trial: Any, search: Search) -> str:
    """One trial in words: its score, how many are done, the best so far, and its values."""
    done = sum(t.status in FINISHED for t in oracle.trials.values())
    what = f"{search.objective} {trial.score:.4f}" if trial.status == "COMPLETED" else f"failed: {reason_of(trial)}"
    best = next(iter(best_first(oracle.trials.values(), search.objective)), None)
    so_far = f"the best is trial {int(best.trial_id)} with {best.score:.4f}" if best else "none completed yet"
    values = values_text(shown_values(oracle, trial))
    return f"trial {int(trial.trial_id)}: {what}; {done} of {search.trials} done, {so_far}; {values}"


def values_text(values: Mapping[str, Any]) -> str:
    """Hyperparameters with their values, on one line."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def reason_of(trial: Any) -> str:
    """The last line of a failed trial's error, without the exception's module."""
    return last_line(trial.message or "unknown")


def shown_values(oracle: Any, trial: Any) -> dict[str, Any]:
    """A trial's hyperparameters that are in effect in the space's order, without KerasTuner's own but the epochs."""
    values = in_effect(trial.hyperparameters.values, oracle.search.recipe)
    epochs = values.get("tuner/epochs")
    # A trial that came from another process has them in another order.
    shown = {
        parameter.name: values[parameter.name] for parameter in oracle.hyperparameters.space if parameter.name in values
    }
    return {**shown, **({"epochs": epochs} if epochs else {})}


def trial_rows(oracle: Any, runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A dict for each trial in the order of their numbers: trial, status, score, seconds, ended_after, run_id, values.

    Args:
        oracle: has the trials.
        runs: the trials' runs, as `read.children_of` gives them.
    """
    by_label = {run["tags"]["label"]: run for run in runs}
    names = [parameter.name for parameter in oracle.hyperparameters.space]
    rows, elapsed = [], 0.0
    for trial_id, trial in sorted(oracle.trials.items(), key=lambda item: int(item[0])):
        run = by_label.get(str(int(trial_id)), {})
        seconds = run.get("seconds", 0.0)
        elapsed += seconds
        rows.append(
            {
                "trial": int(trial_id),
                "status": trial.status,
                "score": trial.score,
                "seconds": round(seconds, 1),
                "seconds_so_far": round(elapsed, 1),
                "run_id": run.get("run_id"),
                # Those that it does not have too, so that all rows have the space's order.
                **dict.fromkeys(names),
                **shown_values(oracle, trial),
            }
        )
    return rows


def trials_report(
    rows: Sequence[Mapping[str, Any]], search: Search
) -> tuple[dict[str, int], dict[str, plots.Figure], dict[str, str]]:
    """The table of trials and the figures: `(metrics, figures, texts)`, the last two by artifact path."""
    columns = list(rows[0])
    table = "".join(map(csv_line, [columns, *([row.get(name) for name in columns] for row in rows)]))
    figures = {}
    completed = [row for row in rows if row["status"] == "COMPLETED"]
    if completed:
        names = columns[columns.index("run_id") + 1 :]
        values = {name: [row.get(name) for row in completed] for name in names}
        scores = [row["score"] for row in completed]
        figures = {
            BEST: plots.best_so_far(
                [row["trial"] for row in completed],
                [row["seconds_so_far"] for row in completed],
                scores,
                search.objective,
                OBJECTIVES[search.objective] == "max",
            ),
            "scores.png": plots.scores_by_hyperparameter(values, scores, search.objective),
            "parallel_coordinates.png": plots.parallel_coordinates(values, scores, search.objective),
        }
    failed = sum(row["status"] == "FAILED" for row in rows)
    return {"completed_trials": len(completed), "failed_trials": failed}, figures, {"trials.csv": table}


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

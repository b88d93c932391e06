"""Make KerasTuner oracles that survive a kill: write state atomically, and repair trials that were cut short.

A search stops after `FAILURES` failed trials in a row. No other module uses KerasTuner (1.4.8); each use of a private
part of it states the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from cnnlab.errors import reading
from cnnlab.models.model_table import Range
from cnnlab.recipe import Recipe
from cnnlab.tuning import search_report
from cnnlab.tuning.search_settings import OBJECTIVES, Search
from cnnlab.tuning.trial_recipes import LENGTHS, at_full_length, candidates, counts_in, kind_of, recipe_of, value_of
from cnnlab.utils.files import atomic_write

# The Gaussian process of the Bayesian tuner warns that a length scale is at its bound, which is usual with few trials.
warnings.filterwarnings("ignore", category=ConvergenceWarning)

FAILURES: int = 3  # failed trials in a row end a search
CANDIDATES: int = 500  # recipes of which a Gaussian process chooses one, where it asked for one again


class Durable(keras_tuner.Oracle):
    """Mixed into an oracle: asked for trials and told how they ended, by whoever runs them.

    After `FAILURES` failed trials in a row since this start it has no new ones; KerasTuner's own raises in the midst of
    its work.
    """

    search: Search
    asked: int = 0
    used_up: bool = False  # every recipe of the space was tried
    failures: tuple[Any, ...] = ()  # the failed trials in a row up to now or, once they are too many, up to then

    def gave_up(self) -> bool:
        """Whether so many trials failed in a row that no more are made, however one still under way may end."""
        return len(self.failures) >= FAILURES

    def ask(self) -> Any:
        """The next trial, or `None` where there is none, or none before another one has ended."""
        if self.gave_up():
            return None
        self.asked += 1  # it takes who asks twice for somebody who goes on with the same trial
        trial = self.create_trial(str(self.asked))
        self.used_up = trial.status == "STOPPED" and bool(self.remaining_trials())
        return trial if trial.status == "RUNNING" else None

    def tell(self, trial: Any, score: float | None = None, error: str | None = None) -> None:
        """End a trial, with its score or with the traceback of its error."""
        if score is not None and not math.isfinite(score):
            error = f"LabError: Expected a finite {self.objective.name}. Received: {score}."
        trial.message = error
        trial.status = "FAILED" if error else "COMPLETED"
        if not error:
            self.update_trial(trial.trial_id, {self.objective.name: score})
        self.end_trial(trial)
        trial = self.trials[trial.trial_id]
        if not self.gave_up():
            self.failures = (*self.failures, trial) if trial.status == "FAILED" else ()

    def recipes_tried(self) -> int:
        """How many different recipes the trials have."""
        return len(self._tried_so_far)

    def untried(self) -> Iterator[dict[str, Any]]:
        """The values of recipes that no trial had, in random order."""
        drawn = candidates(self.search.space, self.search.recipe, self.seed + len(self.trials))
        return (values for values in drawn if not self._duplicate(values))

    def _compute_values_hash(self, values: Mapping[str, Any]) -> str:
        """What KerasTuner finds equal trials by: the recipe, as values that have no effect beside others are none."""
        recipe = recipe_of(at_full_length(values), self.search.recipe)
        return hashlib.sha256(recipe.key_text().encode()).hexdigest()

    def _random_values(self) -> dict[str, Any] | None:
        """A random recipe, but the first one is the recipe that the search starts from, for the others to beat.

        KerasTuner's gives up after drawing recipes of before 20 times, however many are left.
        """
        if self.trials:
            return super()._random_values() or next(self.untried(), None)
        start = keras_tuner.HyperParameters()
        for hyperparameter in self.hyperparameters.space:
            start.merge([hyperparameter])
            if start.is_active(hyperparameter):
                start.values[hyperparameter.name] = hyperparameter.default
        return start.values

    def save(self) -> None:
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        write_json(Path(self._get_trial_dir(trial.trial_id), "trial.json"), trial.get_state())

    def reload(self) -> None:
        """Load the state, and put right what a kill between two writes left behind.

        Raises:
            LabError: a file is damaged.
        """
        for path in sorted(Path(self._project_dir).glob("**/*.json")):
            with reading_state(path):
                json.loads(path.read_text())
        with reading_state(self._project_dir):
            fresh = self.get_state()
            super().reload()
            for name, value in self.get_state().items():
                if fresh[name] is not None and type(value) is not type(fresh[name]):
                    raise TypeError(f"{name} is {value!r}")
            self._put_right()

    def _put_right(self) -> None:
        for trial in self.trials.values():
            if trial.status not in search_report.FINISHED and trial.trial_id not in self._retry_queue:
                self._retry_queue.append(trial.trial_id)  # made, but not yet in the oracle's own file
            elif trial.status in search_report.FINISHED and trial.trial_id in self._retry_queue:
                self._retry_queue.remove(trial.trial_id)  # ended, but not yet in the oracle's own file
        for trial_id, trial in sorted(self.trials.items()):
            if trial.status in search_report.FINISHED and trial_id not in self.end_order:
                self.end_order.append(trial_id)
            if trial_id not in self.start_order:
                self.start_order.append(trial_id)
        self._retry_queue.sort(reverse=True)  # taken from its end, so the oldest first
        # Of a trial that is not yet in the oracle's own file too, and by recipes where an earlier version wrote it.
        self._tried_so_far = {self._compute_values_hash(t.hyperparameters.values) for t in self.trials.values()}


class Random(Durable, keras_tuner.oracles.RandomSearchOracle):
    """Random recipes."""


class Bayesian(Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """A Gaussian process, whose first trials are random."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The next trial: as KerasTuner's, but where that was tried before the most promising one that was not."""
        response = super().populate_space(trial_id)
        if response["status"] != "RUNNING" or not self._duplicate(response["values"]):
            return response
        if not (left := list(itertools.islice(self.untried(), CANDIDATES))):
            return {"status": "STOPPED"}
        space = self._nonfixed_space()
        x = [[hp.value_to_prob(values.get(hp.name, hp.default)) for hp in space] for values in left]
        predicted: Any = self.gpr.predict(x, return_std=True)
        return {"status": "RUNNING", "values": left[int(np.argmin(predicted[0] - self.beta * predicted[1]))]}


class Hyperband(Durable, keras_tuner.oracles.HyperbandOracle):
    """Li et al.'s (2018, arXiv:1603.06560): many short trainings, the best of them longer."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The next trial: a recipe that is new, or else the best of a round that has ended, for longer.

        A round is as long as there are recipes, and goes on without its failed trials; KerasTuner's own waits for more.
        """
        are_left = True
        for bracket in self._brackets:
            number, rounds = bracket["bracket_num"], bracket["rounds"]
            if are_left and len(rounds[0]) < self._get_size(number, 0):
                if values := self._random_values():
                    return self._enter(bracket, 0, trial_id, values)
                are_left = False
            for i, (past, longer) in enumerate(itertools.pairwise(rounds), 1):
                trials = [self.trials[info["id"]] for info in past]
                if any(trial.status not in search_report.FINISHED for trial in trials):
                    break
                best = search_report.best_first(trials, self.objective.name)
                best = best[: math.ceil(len(rounds[0]) / self.factor**i)]
                promoted = {info["past_id"] for info in longer}
                for trial in best:
                    if trial.trial_id not in promoted:
                        return self._enter(bracket, i, trial_id, trial.hyperparameters.values, trial.trial_id)
        if are_left:
            self._increment_bracket_num()
            self._start_new_bracket()
            return self.populate_space(trial_id)
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED"}

    def _enter(
        self, bracket: dict[str, Any], i: int, trial_id: str, values: Mapping[str, Any], past_id: str | None = None
    ) -> dict[str, Any]:
        bracket["rounds"][i].append({"past_id": past_id, "id": trial_id})
        return {
            "status": "RUNNING",
            "values": {**values, "tuner/epochs": self._get_epochs(bracket["bracket_num"], i)},
        }


def hyperparameters(space: Mapping[str, Any], base: Recipe) -> keras_tuner.HyperParameters:
    """The space as KerasTuner's `HyperParameters`; numbers of a field are active only where there are as many.

    The defaults are the base recipe's values, where the space has them.
    """
    base = base.with_defaults()
    hp, counts = keras_tuner.HyperParameters(), counts_in(space, base)
    lengths = {field: length for length, field in LENGTHS.items() if field in counts and length in space}
    for field, length in lengths.items():
        _declare(hp, length, space[length], int, len(getattr(base, field) or ()))
    for name, values in space.items():
        if name in counts:
            numbers = getattr(base, name) or ()
            for i in range(1, max(counts[name]) + 1):
                longer = [count for count in counts[name] if count >= i]
                with hp.conditional_scope(lengths[name], longer) if name in lengths else contextlib.nullcontext():
                    _declare(hp, f"{name}_{i}", values, int, numbers[i - 1] if i <= len(numbers) else None)
        elif name not in lengths.values():
            _declare(hp, name, values, kind_of(name, base, values), value_of(name, base))
    return hp


def _declare(hp: keras_tuner.HyperParameters, name: str, values: Any, kind: Any, start: Any) -> None:
    if not isinstance(values, Range):
        hp.Choice(name, list(values), default=start if start in values else None)
        return
    sampling = "log" if values.log else "linear"
    number = isinstance(start, (int, float))
    default = kind(start) if number and values.low <= start <= values.high else None
    if kind is int:
        hp.Int(name, int(values.low), int(values.high), sampling=sampling, default=default)
    else:
        hp.Float(name, values.low, values.high, sampling=sampling, default=default)


def make_oracle(search: Search, folder: Path) -> Any:
    """The oracle of a search, with the state that is in `folder`."""
    tuner, trials = search.tuner, search.trials
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(search.objective, OBJECTIVES[search.objective]),
        "hyperparameters": hyperparameters(search.space, search.recipe),
        "allow_new_entries": False,
        # Any of ours is one of its; it takes 0 for none.
        "seed": int(np.random.SeedSequence(search.recipe.seed).generate_state(1)[0] % 2**31) or 1,
        "max_consecutive_failed_trials": trials + 1,  # ours counts
    }
    if tuner == "hyperband":
        common |= {"max_epochs": search.recipe.with_defaults().epochs, "hyperband_iterations": None}
        oracle = Hyperband(**common)
        oracle.max_trials = trials
    elif tuner == "random":
        oracle = Random(max_trials=trials, **common)
    else:
        # KerasTuner's own number, three for each hyperparameter, is more than most searches have trials.
        oracle = Bayesian(max_trials=trials, num_initial_points=max(3, trials // 3), **common)
    oracle.search = search
    oracle.verbose = 0
    # What its tuners do, whose loops are for trials in their own process (seen in 1.4.8).
    oracle._set_project_dir(str(folder.parent), folder.name)
    if Path(oracle._get_oracle_fname()).exists():
        oracle.reload()
    return oracle


def reading_state(file: str | Path) -> AbstractContextManager[None]:
    """As `errors.reading`, for files of a search."""
    return reading(f"'{file}' to be a search's state", "Restore it, or start the search again with restart.")


def write_json(path: Path, state: Any) -> None:
    """Write JSON that is there whole or not at all."""
    with atomic_write(path, "w") as file:
        json.dump(state, file)

"""KerasTuner around the shared runner, made to survive: state written whole, half-ended trials put right, a gentle
failure limit.

The only room that knows KerasTuner, whose private parts it reaches for; each reach says why, as seen in 1.4.8.
"""

import contextlib
import dataclasses
import functools
import io
import json
import warnings
from pathlib import Path

import keras_tuner
import numpy as np
from keras_tuner.src import config as keras_tuner_config
from keras_tuner.src.distribute.oracle_chief import exit_chief
from keras_tuner.src.engine import conditions
from sklearn.exceptions import ConvergenceWarning

from cnnlab.errors import reading
from cnnlab.files import written_whole
from cnnlab.models import Range
from tuning import report
from tuning.settings import OBJECTIVES
from tuning.spaces import LENGTHS, kind_of, recipe_of, value_of
from tuning.trials import label_of

# It prints the traceback of every failed trial; our line says why, and the run and the trial's file keep all of it.
keras_tuner_config.DEBUG = False
# It prints a line, for debugging as it seems, for each condition that it sends to another process.
conditions.print = lambda *_: None

# The Gaussian process's, between the lines of the trials: a length scale at its bound is usual with few trials.
warnings.filterwarnings("ignore", category=ConvergenceWarning)

FAILURES = 3  # in a row end a search


class Durable:
    """Mixed into an oracle.

    `on_end(oracle, trial)` is called for every trial that ended. After `FAILURES` failed trials in a row since this
    start no new ones are made, so that every worker is told to stop in the ordinary way; KerasTuner's own raises inside
    its lock, after which its chief never answers again.
    """

    on_end = staticmethod(lambda oracle, trial: None)
    failures = ()  # the failed trials in a row up to now or, once they are too many, up to then
    told_to_stop = False  # whether a worker asked when there were no more trials

    def waits_for_nobody(self) -> bool:
        """Whether every worker was told to stop and has gone, so that a chief may end."""
        return self.told_to_stop and exit_chief(self)

    def gave_up(self) -> bool:
        """Whether so many trials failed in a row that no more are made, however one still under way may end."""
        return len(self.failures) >= FAILURES

    @keras_tuner.synchronized
    def create_trial(self, tuner_id):
        if self.gave_up():
            self.tuner_ids.discard(tuner_id)
            trial = keras_tuner.engine.trial.Trial(self.get_space(), trial_id="none", status="STOPPED")
        else:
            trial = super().create_trial(tuner_id)
        self.told_to_stop = self.told_to_stop or trial.status == "STOPPED"
        return trial

    def _random_values(self):
        """A random recipe, but the first one is the recipe that the search starts from, for the others to beat."""
        if self.trials:
            return super()._random_values()
        start = keras_tuner.HyperParameters()
        for hyperparameter in self.hyperparameters.space:
            start.merge([hyperparameter])
            if start.is_active(hyperparameter):
                start.values[hyperparameter.name] = hyperparameter.default
        return start.values

    @keras_tuner.synchronized
    def end_trial(self, trial):
        super().end_trial(trial)
        trial = self.trials[trial.trial_id]
        if not self.gave_up():
            self.failures = (*self.failures, trial) if trial.status == "FAILED" else ()
        self.on_end(self, trial)

    @keras_tuner.synchronized
    def abandon(self, tuner_id):
        """Give up a worker that is gone for good: its trial goes to another one."""
        if trial := self.ongoing_trials.pop(tuner_id, None):
            self._retry_queue.append(trial.trial_id)
        self.tuner_ids.discard(tuner_id)

    def save(self):
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial):
        write_json(Path(self._get_trial_dir(trial.trial_id), "trial.json"), trial.get_state())

    def reload(self):
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

    def _put_right(self):
        for trial in self.trials.values():
            if trial.status not in report.FINISHED and trial.trial_id not in self._retry_queue:
                self._retry_queue.append(trial.trial_id)  # made, but not yet in the oracle's own file
            elif trial.status in report.FINISHED and trial.trial_id in self._retry_queue:
                self._retry_queue.remove(trial.trial_id)  # ended, but not yet in the oracle's own file
        for trial_id, trial in sorted(self.trials.items()):
            if trial.status in report.FINISHED and trial_id not in self.end_order:
                self.end_order.append(trial_id)
            if trial_id not in self.start_order:
                self.start_order.append(trial_id)
        self._retry_queue.sort(reverse=True)  # taken from its end, so the oldest first


def hyperparameters(space, base):
    """The space as KerasTuner's `HyperParameters`; numbers of a field are active only where there are as many.

    The defaults are the base recipe's values, where the space has them.
    """
    hp = keras_tuner.HyperParameters()
    lengths = {field: length for length, field in LENGTHS.items() if length in space}
    for field, length in lengths.items():
        _declare(hp, length, space[length], int, len(getattr(base, field) or ()))
    for name, values in space.items():
        if name in lengths:
            counts, numbers = space[lengths[name]], getattr(base, name) or ()
            for i in range(1, max(counts) + 1):
                with hp.conditional_scope(lengths[name], [count for count in counts if count >= i]):
                    _declare(hp, f"{name}_{i}", values, int, numbers[i - 1] if i <= len(numbers) else None)
        elif name not in LENGTHS:
            _declare(hp, name, values, kind_of(name, base), value_of(name, base))
    return hp


def _declare(hp, name, values, kind, start):
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


def make_oracle(tuner, *, space, objective, trials, epochs, seed):
    """An oracle by name.

    Args:
        tuner: "bayesian" (a Gaussian process; the first third of the trials is random), "random", or "hyperband" (Li et
            al., 2018, arXiv:1603.06560: many short trainings, the best of them longer).
        space: KerasTuner's `HyperParameters`.
        objective: a key of `OBJECTIVES`.
        trials: at most as many.
        epochs: of a full training, for hyperband.
        seed: any; KerasTuner takes 0 for none.
    """
    common = {
        "objective": keras_tuner.Objective(objective, OBJECTIVES[objective]),
        "hyperparameters": space,
        "allow_new_entries": False,
        "seed": int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31) or 1,
        "max_consecutive_failed_trials": trials + 1,  # ours counts
    }
    if tuner == "hyperband":
        oracle = _durable("Hyperband")(max_epochs=epochs, hyperband_iterations=None, **common)
        oracle.max_trials = trials
    elif tuner == "random":
        oracle = _durable("RandomSearch")(max_trials=trials, **common)
    else:
        # KerasTuner's own number, three for each hyperparameter, is more than most searches have trials.
        initial = max(3, trials // 3)
        oracle = _durable("BayesianOptimization")(max_trials=trials, num_initial_points=initial, **common)
    oracle.verbose = 0
    return oracle


@functools.cache
def _durable(name):
    return type(f"Durable{name}", (Durable, getattr(keras_tuner.oracles, f"{name}Oracle")), {})


def reading_state(file):
    """As `errors.reading`, for files of a search."""
    return reading(f"'{file}' to be a search's state", "Restore it, or start the search again with --restart.")


def write_json(path, state) -> None:
    """Write JSON that is there whole or not at all."""
    with written_whole(path, "w") as file:
        json.dump(state, file)


class TrackedTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """KerasTuner's loop around the shared runner."""

    def __init__(self, search, place, **kwargs):
        self.search_settings, self.place = search, place
        with contextlib.redirect_stdout(io.StringIO()):  # it announces that it reloads
            super().__init__(**kwargs)
        self.save()

    def run_trial(self, trial):
        search = self.search_settings
        recipe = recipe_of(trial.hyperparameters.values, search.recipe)
        recipe = dataclasses.replace(recipe, seed=search.seed(int(trial.trial_id)))
        label = label_of(trial)
        score = self.place.scored_run(search, recipe, "trial", label, f"trial {label}")
        return {search.objective: score}

    def save(self):
        if not self._is_worker():
            self.oracle.save()
        write_json(Path(self._get_tuner_fname()), {})


def make_tuner(search, folder, place) -> TrackedTuner:
    """The tuner of a search, with the state that is in `folder`."""
    oracle = make_oracle(
        search.tuner,
        space=hyperparameters(search.space, search.recipe),
        objective=search.objective,
        trials=search.trials,
        epochs=search.recipe.epochs,
        seed=search.recipe.seed,
    )

    def on_end(oracle, trial):
        if trial.status == "FAILED" and not trial.message:  # it does not come over from another process
            for run in place.children(kind="trial", label=label_of(trial)):
                trial.message = run["tags"].get("reason")
        print(report.trial_line(oracle, trial, search), flush=True)

    oracle.on_end = on_end
    return TrackedTuner(search, place, oracle=oracle, directory=str(folder.parent), project_name=folder.name)

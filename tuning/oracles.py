"""KerasTuner's oracles, made to survive: state written whole, half-ended trials put right, a gentle failure limit."""

import contextlib
import functools
import json
import os
import tempfile
import warnings
from pathlib import Path

import keras_tuner
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from cnnlab.errors import LabError

# The Gaussian process's, between the lines of the trials: a length scale at its bound is usual with few trials.
warnings.filterwarnings("ignore", category=ConvergenceWarning)

TUNERS = ("bayesian", "random", "hyperband")
OBJECTIVES = {"val_accuracy": "max", "val_loss": "min"}
FAILURES = 3  # in a row end a search
FINISHED = ("COMPLETED", "FAILED")


class Durable:
    """Mixed into an oracle.

    `on_end(oracle, trial)` is called for every trial that ended. After `FAILURES` failed trials in a row since this
    start no new ones are made, so that every worker is told to stop in the ordinary way; KerasTuner's own raises inside
    its lock, after which its chief never answers again.
    """

    on_end = staticmethod(lambda oracle, trial: None)
    failures = ()  # the failed trials in a row up to now or, once they are too many, up to then
    told_to_stop = False  # whether a worker asked when there were no more trials

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
            try:
                json.loads(path.read_text())
            except ValueError as error:
                raise LabError(
                    f"Expected '{path}' to be a search's state. Received a damaged file: {error}. Restore it, or start "
                    "the search again with --restart."
                ) from error
        super().reload()
        for trial in self.trials.values():
            if trial.status not in FINISHED and trial.trial_id not in self._retry_queue:
                self._retry_queue.append(trial.trial_id)  # made, but not yet in the oracle's own file
            elif trial.status in FINISHED and trial.trial_id in self._retry_queue:
                self._retry_queue.remove(trial.trial_id)  # ended, but not yet in the oracle's own file
        for trial_id, trial in sorted(self.trials.items()):
            if trial.status in FINISHED and trial_id not in self.end_order:
                self.end_order.append(trial_id)
            if trial_id not in self.start_order:
                self.start_order.append(trial_id)
        self._retry_queue.sort(reverse=True)  # taken from its end, so the oldest first


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


def write_json(path, state) -> None:
    """Write JSON beside `path` and rename it into place: a kill leaves the old file or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
        try:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
    os.replace(file.name, path)

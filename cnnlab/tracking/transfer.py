"""Runs copied from one store to another, as often as it takes: what is there already is not sent again.

A store gives its runs ids of its own. So every copy carries the id of the original in a tag, by which it is found.
"""

import contextlib
import shutil

import mlflow
from mlflow.entities import LoggedModelOutput, Param, RunTag, ViewType
from mlflow.models import Model

from cnnlab.errors import LabError
from cnnlab.names import short_hash
from cnnlab.temporary import private_folder
from cnnlab.tracking.inside_mlflow import artifacts_of
from cnnlab.tracking.listing import all_experiments, every
from cnnlab.tracking.places import BESIDE, artifacts_folder, local_database
from cnnlab.tracking.tags import RECORDED_AS, TAG, UNDELIVERED, matches

PARENT = "mlflow.parentRunId"
MOST_METRICS, MOST_OTHERS = 1000, 100  # that MLflow takes in one call


class Unwanted(Exception):
    """Nobody waits for the copy any more."""


class Transfer:
    """The runs of a local store on their way to another store.

    Attributes:
        ids: of runs and `models:/...` addresses here, to those there.

    Args:
        source: address of the local store.
        target: of the other one.
        known: facts that were noted before, `{"run": id, "there": id}`, `{"model": ..., "there": ...}`, `{"file":
            [name, bytes, changed]}`, `{"deleted": id}`.
        note: takes such facts as keywords, when they are true.
        parent, experiment_id: of the other store, for runs that have no parent here.
        wanted: a function; once it gives `False`, the next step raises `Unwanted`.
        rest: a text for a tag that a run has there as long as something is missing.
    """

    def __init__(
        self, source, target, known, note, *, parent=None, experiment_id=None, wanted=lambda: True, rest="copying"
    ):
        self.source, self.target = mlflow.MlflowClient(source), mlflow.MlflowClient(target)
        self.artifacts = artifacts_folder(local_database(source))
        self.parent, self.experiment_id, self.rest = parent, experiment_id, rest
        self.note, self.wanted = note, wanted
        self.runs, self.models, self.files, self.deleted = {}, {}, set(), set()
        for fact in known:
            if "run" in fact:
                self.runs[fact["run"]] = fact["there"]
            elif "model" in fact:
                self.models[fact["model"]] = fact["there"]
            elif "deleted" in fact:
                self.deleted.add(fact["deleted"])
            elif "file" in fact:
                self.files.add(_key(fact["file"]))
        self.experiments, self.seen, self.sent = {}, {}, {}

    @property
    def ids(self) -> dict:
        models = {f"models:/{here}": f"models:/{there}" for here, there in self.models.items()}
        return {**self.runs, **models}

    def copy(self, whole) -> bool:
        """Send what is new of all runs.

        Returns:
            Whether all of it is there; of a run that has not ended, the rest is to come.

        Args:
            whole: look at every part of every run; otherwise at those that show that they have changed.

        Raises:
            MlflowException, OSError: the other store does not take it now, or refuses it.
            LabError: its experiment was deleted.
            Unwanted: see above.
        """
        ended = True
        runs = every(
            self.source.search_runs,
            all_experiments(self.source),
            run_view_type=ViewType.ALL,
            order_by=["attributes.start_time ASC"],
        )
        for run in runs:
            here = run.info.run_id
            if run.info.lifecycle_stage == "deleted":
                self._delete(here)
                continue
            shows = (run.info.status, run.info.end_time, str(run.data.to_dictionary()))
            if whole or self.sent.get(here) != shows:
                self._copy(run)
                self.sent[here] = shows
            ended = ended and run.info.status != "RUNNING"
        return ended

    def _copy(self, run):
        here, there = run.info.run_id, self._run(run)
        seen = self.seen.get(here)
        if seen is None:
            data = self.target.get_run(there).data
            seen = self.seen[here] = {"params": dict(data.params), "tags": dict(data.tags), "metrics": {}}
        params = {name: value for name, value in run.data.params.items() if seen["params"].get(name) != value}
        tags = {name: value for name, value in self._tags(run).items() if seen["tags"].get(name) != value}
        for some in _parts(list(params.items()), MOST_OTHERS):
            self._ask(self.target.log_batch, there, params=[Param(*pair) for pair in some])
        for some in _parts(list(tags.items()), MOST_OTHERS):
            self._ask(self.target.log_batch, there, tags=[RunTag(*pair) for pair in some])
        for name in [name for name in seen["tags"] if name.startswith(TAG) and name not in self._tags(run)]:
            if name not in (RECORDED_AS, UNDELIVERED):
                self._ask(self.target.delete_tag, there, name)
                del seen["tags"][name]
        seen["params"].update(params)
        seen["tags"].update(tags)
        self._metrics(run, there, seen["metrics"])
        if run.info.status != "RUNNING":
            self._rest(run, there)

    def _metrics(self, run, there, seen):
        new = []
        for name in run.data.metrics:
            if name not in seen:
                seen[name] = set(map(_point, self._ask(self.target.get_metric_history, there, name)))
            history = self.source.get_metric_history(run.info.run_id, name)
            new += [metric for metric in history if _point(metric) not in seen[name]]
        for some in _parts(new, MOST_METRICS):
            self._ask(self.target.log_batch, there, metrics=some)
            for metric in some:
                seen[metric.key].add(_point(metric))

    def _rest(self, run, there):
        """What a run has when it has ended; its status says then that all of it is there."""
        here = run.info.run_id
        if run.inputs and run.inputs.dataset_inputs:
            self._ask(self.target.log_inputs, there, datasets=run.inputs.dataset_inputs)
        self._files(self._place(run.info.artifact_uri), artifacts_of(self.target, run_id=there))
        steps = {model.model_id: model.step for model in run.outputs.model_outputs} if run.outputs else {}
        for model in every(self.source.search_logged_models, [run.info.experiment_id], f"source_run_id = '{here}'"):
            self._model(model, there, steps.get(model.model_id, 0))
        copies = self._copies(run)
        for copy in copies:
            if copy != there:  # the answer to an earlier attempt was lost
                self._ask(self.target.delete_run, copy)
        if UNDELIVERED in self.target.get_run(there).data.tags:
            self._ask(self.target.delete_tag, there, UNDELIVERED)
        self._ask(self.target.set_terminated, there, run.info.status, run.info.end_time)

    def _run(self, run):
        """The id of the copy of a run, made where there is none."""
        here = run.info.run_id
        if here not in self.runs:
            found = self._copies(run)
            there = found[0] if found else self._made(run)
            self.note(run=here, there=there)
            self.runs[here] = there
        return self.runs[here]

    def _made(self, run):
        made = self._ask(
            self.target.create_run,
            self._experiment(run),
            start_time=run.info.start_time,
            tags={**self._tags(run), RECORDED_AS: run.info.run_id, UNDELIVERED: self.rest},
            run_name=run.info.run_name,
        )
        return made.info.run_id

    def _copies(self, run):
        condition = matches(f"tags.`{RECORDED_AS}`", run.info.run_id)
        found = self._ask(
            self.target.search_runs, [self._experiment(run)], condition, order_by=["attributes.start_time ASC"]
        )
        return [copy.info.run_id for copy in found]

    def _tags(self, run):
        tags = dict(run.data.tags)
        if parent := tags.get(PARENT):
            tags[PARENT] = self.runs.get(parent, parent)  # else a run that is there already
        return tags

    def _delete(self, here):
        if here in self.runs and here not in self.deleted:
            self._ask(self.target.delete_run, self.runs[here])
            self.note(deleted=here)
            self.deleted.add(here)

    def _experiment(self, run):
        here = run.info.experiment_id
        if here not in self.experiments:
            self.experiments[here] = self.experiment_id or self._of_parent() or self._named(here)
        return self.experiments[here]

    def _of_parent(self):
        return self._ask(self.target.get_run, self.parent).info.experiment_id if self.parent else None

    def _named(self, here):
        """The id of the experiment of the same name and data set; of another data set's the name gets a suffix."""
        ours = self.source.get_experiment(here)
        source = ours.tags.get(TAG + "source")
        names = [ours.name] + ([f"{ours.name}-{short_hash(source)}"] if source else [])
        for name in names:
            found = self._ask(self.target.get_experiment_by_name, name)
            if found is None:
                with contextlib.suppress(mlflow.MlflowException):  # another process is faster
                    self._ask(self.target.create_experiment, name, tags=ours.tags)
                found = self._ask(self.target.get_experiment_by_name, name)
            if found is None:
                raise LabError(f"Expected to make the experiment '{name}'. Received: a refusal. Ask for it.")
            if found.lifecycle_stage == "deleted":
                raise LabError(
                    f"Expected experiment '{name}' to be active. Received: one that was deleted. Restore it with "
                    f"'mlflow experiments restore -x {found.experiment_id}'."
                )
            if source is None or found.tags.get(TAG + "source") == source:
                return found.experiment_id
        raise LabError(f"Expected '{names[-1]}' to be the experiment of {source}. Received: one without our tags.")

    def _model(self, model, run_there, step):
        here = model.model_id
        experiment_id = self.target.get_run(run_there).info.experiment_id
        condition = matches(f"tags.`{RECORDED_AS}`", here)
        found = [m.model_id for m in self._ask(self.target.search_logged_models, [experiment_id], condition)]
        if here not in self.models:
            there = found[0] if found else self._made_model(model, experiment_id, run_there)
            self.note(model=here, there=there)
            self.models[here] = there
        there = self.models[here]
        for copy in found:
            if copy != there:
                self._ask(self.target.delete_logged_model, copy)
        folder, repository = self._place(model.artifact_location), artifacts_of(self.target, model_id=there)
        self._files(folder, repository, {"MLmodel": lambda file: self._described(file, there, run_there)})
        if not any(output.model_id == there for output in self._outputs(run_there)):
            self._ask(self.target.log_outputs, run_there, models=[LoggedModelOutput(there, step)])
        self._ask(self.target.finalize_logged_model, there, str(model.status))

    def _made_model(self, model, experiment_id, run_there):
        made = self._ask(
            self.target.create_logged_model,
            experiment_id,
            name=model.name,
            source_run_id=run_there,
            tags={**model.tags, RECORDED_AS: model.model_id},
            params=model.params,
            model_type=model.model_type,
        )
        return made.model_id

    def _outputs(self, run_there):
        outputs = self._ask(self.target.get_run, run_there).outputs
        return outputs.model_outputs if outputs else []

    def _described(self, file, there, run_there):
        """A model's own description, with its ids and place there."""
        described = Model.load(file)
        described.model_id = described.model_uuid = there
        described.run_id = run_there
        described.artifact_path = self.target.get_logged_model(there).artifact_location
        described.save(file)

    def _files(self, folder, repository, changed=None):
        """Send the files of a folder one by one: what was half sent is sent again, whole."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            stat, name = file.stat(), file.relative_to(self.artifacts).as_posix()
            fact = [name, stat.st_size, stat.st_mtime_ns]
            if _key(fact) in self.files:
                continue
            below = file.relative_to(folder)
            with private_folder("files") as private:
                if change := (changed or {}).get(below.as_posix()):
                    change(sent := shutil.copy(file, private))
                else:
                    sent = file
                place = below.parent.as_posix()
                self._ask(repository.log_artifact, str(sent), None if place == "." else place)
            self.note(file=fact)
            self.files.add(_key(fact))

    def _place(self, uri):
        return self.artifacts / uri.removeprefix(BESIDE).strip("/")

    def _ask(self, call, *args, **kwargs):
        if not self.wanted():
            raise Unwanted
        return call(*args, **kwargs)


def _key(fact):
    return tuple(fact)


def _point(metric):
    return metric.step, metric.timestamp, repr(float(metric.value))


def _parts(items, most):
    return [items[i : i + most] for i in range(0, len(items), most)]

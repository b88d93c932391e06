"""Runs copied from one store to another, as often as it takes: what is there already is not sent again.

A store gives its runs ids of its own. So every copy carries the id of the original in a tag, by which it is found, also
in the copy of a copy; that one carries the ids in between in another tag.
"""

import contextlib
import re
import shutil

import mlflow
from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric, Param, RunTag, ViewType
from mlflow.models import Model

from cnnlab.errors import LabError
from cnnlab.tracking.maintenance.stored_rows import folder_of
from cnnlab.tracking.mlflow_internals import artifacts_of
from cnnlab.tracking.pagination import all_experiments, every
from cnnlab.tracking.store_location import BESIDE, local_database
from cnnlab.tracking.tag_names import KNOWN_AS, RECORDED_AS, TAG, UNDELIVERED, matches
from cnnlab.utils.temporary_folders import private_folder
from cnnlab.utils.text import short_hash

PARENT = "mlflow.parentRunId"
VERSIONS = "mlflow.modelVersions"  # on a logged model: a server's note of what it is registered as there
RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")
MOST_METRICS, MOST_OTHERS = 1000, 100  # that MLflow takes in one call


class Unwanted(Exception):
    """Nobody waits for the copy any more."""


class Transfer:
    """The runs of a store on their way to another store.

    Attributes:
        ids: of runs and `models:/...` addresses here, to those there.
        lost: sentences on what could not be copied.

    Args:
        source: address of the store that has them.
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
        self.database, self.into_local = local_database(source), local_database(target) is not None
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
        self.experiments, self.seen, self.sent, self.lost = {}, {}, {}, []

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
                self.copy_run(run)
                self.sent[here] = shows
            ended = ended and run.info.status != "RUNNING"
        return ended

    def copy_run(self, run) -> None:
        """Send what is new of a run, whose parent has been sent before; errors as for `copy`."""
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
            if name != UNDELIVERED:
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
        self._inputs(run, there)
        with self._folder(run.info.artifact_uri, run_id=here) as folder:
            self._files(folder, run.info.artifact_uri, artifacts_of(self.target, run_id=there))
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

    def _inputs(self, run, there):
        datasets = run.inputs.dataset_inputs if run.inputs else []
        models = run.inputs.model_inputs if run.inputs else []
        known = [LoggedModelInput(self.models[model.model_id]) for model in models if model.model_id in self.models]
        if len(known) < len(models):
            self.lost.append(f"run {run.info.run_id[:8]}: which models it took as its input")
        if datasets or known:
            self._ask(self.target.log_inputs, there, datasets=datasets or None, models=known or None)

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
            tags={**self._tags(run), UNDELIVERED: self.rest},
            run_name=run.info.run_name,
        )
        return made.info.run_id

    def _copies(self, run):
        condition = matches(f"tags.`{RECORDED_AS}`", origin(run.data.tags, run.info.run_id))
        found = self._ask(
            self.target.search_runs, [self._experiment(run)], condition, order_by=["attributes.start_time ASC"]
        )
        return [copy.info.run_id for copy in found]

    def _tags(self, run):
        """The tags of a run as they are there: those that name runs (a parent, what it compares) name the copies."""

        def renamed(found):
            return self.runs.get(found[0], found[0])  # else a run that is there already

        ours = {name: value for name, value in run.data.tags.items() if name == PARENT or name.startswith(TAG)}
        tags = {**run.data.tags, **{name: RUN_ID.sub(renamed, value) for name, value in ours.items()}}
        here = run.info.run_id
        tags[RECORDED_AS] = first = origin(run.data.tags, here)
        if first != here:
            tags[KNOWN_AS] = f"{run.data.tags.get(KNOWN_AS, '')} {here}"
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
                place = f"{BESIDE}/" if self.into_local else None  # a server decides for itself
                with contextlib.suppress(mlflow.MlflowException):  # another process is faster
                    self._ask(self.target.create_experiment, name, artifact_location=place, tags=ours.tags)
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

    def models_there(self, model, run_there) -> list[str]:
        """The ids of a logged model's copies, of which there is one but for the time of a repeated request."""
        experiment_id = self._ask(self.target.get_run, run_there).info.experiment_id
        condition = matches(f"tags.`{RECORDED_AS}`", origin(model.tags, model.model_id))
        return [m.model_id for m in self._ask(self.target.search_logged_models, [experiment_id], condition)]

    def _model(self, model, run_there, step):
        here = model.model_id
        found = self.models_there(model, run_there)
        if here not in self.models:
            there = found[0] if found else self._made_model(model, run_there)
            self.note(model=here, there=there)
            self.models[here] = there
        there = self.models[here]
        for copy in found:
            if copy != there:
                self._ask(self.target.delete_logged_model, copy)
        repository = artifacts_of(self.target, model_id=there)
        with self._folder(model.artifact_location, model_id=here) as folder:
            if not (folder / "MLmodel").is_file():
                self.lost.append(f"the files of the model of run {model.source_run_id[:8]}: they are not there")
            changes = {"MLmodel": lambda file: self._described(file, there, run_there)}
            self._files(folder, model.artifact_location, repository, changes)
        for metric in model.metrics or ():
            self._of_model(metric, there)
        if not any(output.model_id == there for output in self._outputs(run_there)):
            self._ask(self.target.log_outputs, run_there, models=[LoggedModelOutput(there, step)])
        self._ask(self.target.finalize_logged_model, there, str(model.status))

    def _of_model(self, metric, there):
        """A metric that a run has measured of a model."""
        if metric.run_id in self.runs:
            facts = (metric.key, metric.value, metric.timestamp, metric.step, there)
            linked = Metric(*facts, dataset_name=metric.dataset_name, dataset_digest=metric.dataset_digest)
            self._ask(self.target.log_batch, self.runs[metric.run_id], metrics=[linked])

    def _made_model(self, model, run_there):
        tags = {name: value for name, value in model.tags.items() if name != VERSIONS}
        made = self._ask(
            self.target.create_logged_model,
            self._ask(self.target.get_run, run_there).info.experiment_id,
            name=model.name,
            source_run_id=run_there,
            tags={**tags, RECORDED_AS: origin(model.tags, model.model_id)},
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

    @contextlib.contextmanager
    def _folder(self, place, **whose):
        """The folder with the files of a run or a model here, or a copy of it where it is not on this disk."""
        folder = folder_of(place, self.database) if self.database else None
        if folder:
            yield folder
            return
        with private_folder("files") as copy:
            files = artifacts_of(self.source, **whose)
            if files.list_artifacts():
                files.download_artifacts("", str(copy))
            yield copy

    def _files(self, folder, place, repository, changed=None):
        """Send the files of a folder one by one: what was half sent is sent again, whole."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            stat, below = file.stat(), file.relative_to(folder)
            fact = [f"{place.removeprefix(BESIDE).strip('/')}/{below.as_posix()}", stat.st_size, stat.st_mtime_ns]
            if _key(fact) in self.files:
                continue
            with private_folder("files") as private:
                if change := (changed or {}).get(below.as_posix()):
                    change(sent := shutil.copy(file, private))
                else:
                    sent = file
                place_there = below.parent.as_posix()
                self._ask(repository.log_artifact, str(sent), None if place_there == "." else place_there)
            self.note(file=fact)
            self.files.add(_key(fact))

    def _ask(self, call, *args, **kwargs):
        if not self.wanted():
            raise Unwanted
        return call(*args, **kwargs)


def origin(tags, own_id) -> str:
    """The id of a run, a model or a version where it was made, of a copy as of the original."""
    return tags.get(RECORDED_AS, own_id)


def _key(fact):
    return tuple(fact)


def _point(metric):
    return metric.step, metric.timestamp, repr(float(metric.value))


def _parts(items, most):
    return [items[i : i + most] for i in range(0, len(items), most)]

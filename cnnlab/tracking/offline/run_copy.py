"""Copy runs with their metrics, artifacts and logged models from one store to another; skip what is there already.

Run ids differ between stores. A tag of each copy holds the id of the original run. In a copy of a copy, a second
tag lists the ids of the copies in between.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import entities
from mlflow.models import Model

from cnnlab.tracking.experiments import named_experiment, source_experiment
from cnnlab.tracking.maintenance.stored_rows import folder_of
from cnnlab.tracking.mlflow_internals import artifacts_of
from cnnlab.tracking.pagination import all_experiments, paginate
from cnnlab.tracking.store_location import BESIDE, local_database
from cnnlab.tracking.tag_names import KNOWN_AS, RECORDED_AS, TAG, UNDELIVERED, matches
from cnnlab.utils.temporary_folders import private_folder

PARENT = "mlflow.parentRunId"
VERSIONS = "mlflow.modelVersions"  # on a logged model: a server's note of what it is registered as
RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")
OLDEST_FIRST = ["attributes.start_time ASC"]


class Unwanted(Exception):
    """Nobody waits for the copy any more."""


@dataclass
class Interruptible:
    """An object each of whose methods raises `Unwanted` once the copy is not wanted any more."""

    wrapped: Any
    wanted: Callable[[], bool]

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.wanted():
                raise Unwanted
            return getattr(self.wrapped, name)(*args, **kwargs)

        return call


@dataclass
class Transfer:
    """The runs of a store on their way to another store."""

    source_uri: str  # of the store that has the runs
    target_uri: str
    # Facts that an interrupted transfer noted: `{"run": id, "there": id}`, `{"model": ..., "there": ...}`, `{"file":
    # [name, bytes, changed]}`, `{"deleted": id}`, with the target's ids as "there".
    known: InitVar[Iterable[Mapping[str, Any]]]
    note: Callable[..., None]  # takes such facts as keywords, once they are true
    _: KW_ONLY
    parent: str | None = None  # in the target, for runs that have no parent in the source
    experiment_id: str | None = None  # in the target, for these
    wanted: InitVar[Callable[[], bool]] = lambda: True  # once it returns `False`, the next step raises `Unwanted`
    source_location: str = "copying"  # text of the tag that a copy has as long as a part of it is missing

    def __post_init__(self, known: Iterable[Mapping[str, Any]], wanted: Callable[[], bool]) -> None:
        self.source = mlflow.MlflowClient(self.source_uri)
        self.target = Interruptible(mlflow.MlflowClient(self.target_uri), wanted)
        self.source_database = local_database(self.source_uri)
        facts = list(known)
        # Ids in the source to ids in the target.
        self.run_ids: dict[str, str] = {fact["run"]: fact["there"] for fact in facts if "run" in fact}
        self.model_ids: dict[str, str] = {fact["model"]: fact["there"] for fact in facts if "model" in fact}
        self.files: set[tuple[Any, ...]] = {tuple(fact["file"]) for fact in facts if "file" in fact}
        self.deleted: set[str] = {fact["deleted"] for fact in facts if "deleted" in fact}
        self.experiment_ids: dict[str, str] = {}
        self.sent: dict[str, Any] = {}  # by the source's ids: what a run looked like when it was sent last
        self.seen: dict[str, dict[str, Any]] = {}  # and what its copy has
        self.lost: list[str] = []  # sentences about what could not be copied
        # Runs, versions and aliases that are copied, and that the target has already.
        self.copied, self.present = Counter(), Counter()

    @property
    def ids(self) -> dict[str, str]:
        """Ids of runs and `models:/...` addresses in the source, to those in the target."""
        return {**self.run_ids, **{f"models:/{a}": f"models:/{b}" for a, b in self.model_ids.items()}}

    def copy(self, whole: bool) -> bool:
        """Send what is new of all runs; unless `whole`, look only at runs that have changed.

        Returns:
            Whether all runs have ended, and the target has all of them.

        Raises:
            MlflowException, OSError: the target does not answer, or refuses.
            LabError: the experiment was deleted in the target.
            Unwanted: the copy is not wanted any more.
        """
        all_ended = True
        options = {"run_view_type": entities.ViewType.ALL, "order_by": OLDEST_FIRST}
        for run in paginate(self.source.search_runs, all_experiments(self.source), **options):
            source_id = run.info.run_id
            if run.info.lifecycle_stage == "deleted":
                self._delete(source_id)
                continue
            state = (run.info.status, run.info.end_time, str(run.data.to_dictionary()))
            if whole or self.sent.get(source_id) != state:
                self.copy_run(run)
                self.sent[source_id] = state
            all_ended = all_ended and run.info.status != "RUNNING"
        return all_ended

    def copy_run(self, run: entities.Run) -> None:
        """Send what is new of a run, whose parent has been sent before; errors as for `copy`."""
        target_id = self._target_run(run)
        seen = self.seen.get(run.info.run_id)
        if seen is None:
            data = self.target.get_run(target_id).data
            seen = self.seen[run.info.run_id] = {"params": dict(data.params), "tags": dict(data.tags), "metrics": {}}
        run_tags = self._tags(run)
        params = {name: value for name, value in run.data.params.items() if seen["params"].get(name) != value}
        tags = {name: value for name, value in run_tags.items() if seen["tags"].get(name) != value}
        new_params = [entities.Param(*pair) for pair in params.items()]
        self.target.log_batch(target_id, params=new_params, tags=[entities.RunTag(*pair) for pair in tags.items()])
        for name in [name for name in seen["tags"] if name.startswith(TAG) and name not in run_tags]:
            if name != UNDELIVERED:
                self.target.delete_tag(target_id, name)
                del seen["tags"][name]
        seen["params"] |= params
        seen["tags"] |= tags
        self._copy_metrics(run, target_id, seen["metrics"])
        if run.info.status != "RUNNING":
            self._complete(run, target_id)

    def _copy_metrics(self, run: entities.Run, target_id: str, seen: dict[str, set]) -> None:
        new = []
        for name in run.data.metrics:
            if name not in seen:
                seen[name] = set(map(_point, self.target.get_metric_history(target_id, name)))
            history = self.source.get_metric_history(run.info.run_id, name)
            new += [metric for metric in history if _point(metric) not in seen[name]]
        self.target.log_batch(target_id, metrics=new)
        for metric in new:
            seen[metric.key].add(_point(metric))

    def _complete(self, run: entities.Run, target_id: str) -> None:
        """Send what a run has when it has ended, and last its status, which says that the target has all of it."""
        source_id = run.info.run_id
        self._copy_inputs(run, target_id)
        with self._folder(run.info.artifact_uri, run_id=source_id) as folder:
            self._copy_files(folder, run.info.artifact_uri, {"run_id": target_id})
        steps = {model.model_id: model.step for model in run.outputs.model_outputs} if run.outputs else {}
        condition = f"source_run_id = '{source_id}'"
        for model in paginate(self.source.search_logged_models, [run.info.experiment_id], condition):
            self._copy_model(model, target_id, steps.get(model.model_id, 0))
        for copy in self._copies(run):
            if copy != target_id:  # of an earlier attempt, whose answer was lost
                self.target.delete_run(copy)
        if UNDELIVERED in self.target.get_run(target_id).data.tags:
            self.target.delete_tag(target_id, UNDELIVERED)
        self.target.set_terminated(target_id, run.info.status, run.info.end_time)

    def _copy_inputs(self, run: entities.Run, target_id: str) -> None:
        datasets = run.inputs.dataset_inputs if run.inputs else []
        models = run.inputs.model_inputs if run.inputs else []
        known = [entities.LoggedModelInput(self.model_ids[m.model_id]) for m in models if m.model_id in self.model_ids]
        if len(known) < len(models):
            self.lost.append(f"run {run.info.run_id[:8]}: which models it took as its input")
        if datasets or known:
            self.target.log_inputs(target_id, datasets=datasets or None, models=known or None)

    def _target_run(self, run: entities.Run) -> str:
        """Return the id of a run's copy, which is made if there is none."""
        source_id = run.info.run_id
        if source_id not in self.run_ids:
            if copies := self._copies(run):
                target_id = copies[0]
            else:
                about = {"start_time": run.info.start_time, "run_name": run.info.run_name}
                about["tags"] = {**self._tags(run), UNDELIVERED: self.source_location}
                target_id = self.target.create_run(self._target_experiment(run), **about).info.run_id
            self.note(run=source_id, there=target_id)
            self.run_ids[source_id] = target_id
        return self.run_ids[source_id]

    def _copies(self, run: entities.Run) -> list[str]:
        condition = matches(f"tags.`{RECORDED_AS}`", origin(run.data.tags, run.info.run_id))
        copies = self.target.search_runs([self._target_experiment(run)], condition, order_by=OLDEST_FIRST)
        return [copy.info.run_id for copy in copies]

    def _tags(self, run: entities.Run) -> dict[str, str]:
        """Return the tags of a run's copy: where they name runs (a parent, compared runs), they name the copies."""
        tags = dict(run.data.tags)
        for name, value in run.data.tags.items():
            if name == PARENT or name.startswith(TAG):
                tags[name] = RUN_ID.sub(lambda found: self.run_ids.get(found[0], found[0]), value)
        source_id = run.info.run_id
        tags[RECORDED_AS] = origin(run.data.tags, source_id)
        if tags[RECORDED_AS] != source_id:
            tags[KNOWN_AS] = f"{run.data.tags.get(KNOWN_AS, '')} {source_id}"
        return tags

    def _delete(self, source_id: str) -> None:
        if source_id in self.run_ids and source_id not in self.deleted:
            self.target.delete_run(self.run_ids[source_id])
            self.note(deleted=source_id)
            self.deleted.add(source_id)

    def _target_experiment(self, run: entities.Run) -> str:
        """Return the id of the target's experiment with the same name and data set, which is made if there is none."""
        source_id = run.info.experiment_id
        if self.parent and not self.experiment_id:
            self.experiment_id = self.target.get_run(self.parent).info.experiment_id
        if self.experiment_id:
            return self.experiment_id
        if source_id not in self.experiment_ids:
            experiment, client = self.source.get_experiment(source_id), self.target.wrapped
            name, tags = experiment.name, experiment.tags
            if source := tags.get(TAG + "source"):
                self.experiment_ids[source_id] = source_experiment(name, source, tags, client)
            else:
                self.experiment_ids[source_id] = named_experiment(name, tags, client).experiment_id
        return self.experiment_ids[source_id]

    def copies_of_model(self, model: entities.LoggedModel, target_run_id: str) -> list[str]:
        """Return the ids of a logged model's copies: at most one, but after a request whose answer was lost."""
        experiment_id = self.target.get_run(target_run_id).info.experiment_id
        condition = matches(f"tags.`{RECORDED_AS}`", origin(model.tags, model.model_id))
        return [copy.model_id for copy in self.target.search_logged_models([experiment_id], condition)]

    def _copy_model(self, model: entities.LoggedModel, target_run_id: str, step: int) -> None:
        copies = self.copies_of_model(model, target_run_id)
        if model.model_id not in self.model_ids:
            made = copies[0] if copies else self._make_model(model, target_run_id)
            self.note(model=model.model_id, there=made)
            self.model_ids[model.model_id] = made
        target_id = self.model_ids[model.model_id]
        for copy in copies:
            if copy != target_id:
                self.target.delete_logged_model(copy)
        with self._folder(model.artifact_location, model_id=model.model_id) as folder:
            if not (folder / "MLmodel").is_file():
                self.lost.append(f"the files of the model of run {str(model.source_run_id)[:8]}: they are not there")
            self._copy_files(folder, model.artifact_location, {"model_id": target_id}, target_run_id)
        for metric in model.metrics or ():
            if metric.run_id in self.run_ids:  # that a run has measured of the model
                point = (metric.key, metric.value, metric.timestamp, metric.step, target_id)
                data = {"dataset_name": metric.dataset_name, "dataset_digest": metric.dataset_digest}
                self.target.log_batch(self.run_ids[metric.run_id], metrics=[entities.Metric(*point, **data)])
        outputs = self.target.get_run(target_run_id).outputs
        if not any(output.model_id == target_id for output in (outputs.model_outputs if outputs else ())):
            self.target.log_outputs(target_run_id, models=[entities.LoggedModelOutput(target_id, step)])
        self.target.finalize_logged_model(target_id, str(model.status))

    def _make_model(self, model: entities.LoggedModel, target_run_id: str) -> str:
        tags = {name: value for name, value in model.tags.items() if name != VERSIONS}
        made = self.target.create_logged_model(
            self.target.get_run(target_run_id).info.experiment_id,
            name=model.name,
            source_run_id=target_run_id,
            tags={**tags, RECORDED_AS: origin(model.tags, model.model_id)},
            params=model.params,
            model_type=model.model_type,
        )
        return made.model_id

    @contextlib.contextmanager
    def _folder(self, place: str | None, **owner: str) -> Iterator[Path]:
        """Give the folder with the files of a run or a model of the source, or a copy where it is not on this disk."""
        folder = folder_of(place, self.source_database) if place and self.source_database else None
        if folder:
            yield folder
            return
        with private_folder("files") as copy:
            files = artifacts_of(self.source, **owner)
            if files.list_artifacts():
                files.download_artifacts("", str(copy))
            yield copy

    def _copy_files(
        self, folder: Path, place: str | None, owner: dict[str, str], model_run_id: str | None = None
    ) -> None:
        """Send the files of a folder one by one: a file that was half sent is sent again, whole.

        `place` is theirs in the source, `owner` the `run_id` or `model_id` in the target that they belong to.
        """
        repository = Interruptible(artifacts_of(self.target.wrapped, **owner), self.target.wanted)
        prefix = (place or "").removeprefix(BESIDE).strip("/")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            stat, below = file.stat(), file.relative_to(folder)
            fact = (f"{prefix}/{below.as_posix()}", stat.st_size, stat.st_mtime_ns)
            if fact in self.files:
                continue
            with private_folder("files") as private:
                sent = file
                if model_run_id and below.as_posix() == "MLmodel":
                    # With the model's ids and place in the target.
                    sent, described = private / "MLmodel", Model.load(str(file))
                    described.model_id = described.model_uuid = owner["model_id"]
                    described.run_id = model_run_id
                    described.artifact_path = self.target.get_logged_model(owner["model_id"]).artifact_location
                    described.save(str(sent))
                subfolder = below.parent.as_posix()
                repository.log_artifact(str(sent), None if subfolder == "." else subfolder)
            self.note(file=list(fact))
            self.files.add(fact)


def origin(tags: Mapping[str, str], own_id: str) -> str:
    """Return the id of a run, a model or a version where it was made: of a copy, that of the original."""
    return tags.get(RECORDED_AS, own_id)


def _point(metric: entities.Metric) -> tuple[int, int, str]:
    return metric.step, metric.timestamp, repr(float(metric.value))

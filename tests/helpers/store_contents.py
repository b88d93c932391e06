"""What a store holds, said without the ids and places that are its own: equal for a store and its copy."""

import hashlib
import re
from pathlib import Path

import mlflow
import yaml

from cnnlab.tracking.mlflow_internals import artifacts_of
from cnnlab.tracking.offline.model_copy import identity
from cnnlab.tracking.offline.run_copy import VERSIONS, origin
from cnnlab.tracking.pagination import all_experiments, paginate
from cnnlab.tracking.tag_names import KNOWN_AS, RECORDED_AS

OWN = (RECORDED_AS, KNOWN_AS, VERSIONS)
ID = re.compile(r"\b(m-)?[0-9a-f]{32}\b")


def contents(uri) -> dict:
    """Experiments, runs, logged models and registered versions, each whole, by the ids where they were made."""
    client = mlflow.MlflowClient(uri)
    experiments = {e.experiment_id: e for e in paginate(client.search_experiments)}
    runs = list(paginate(client.search_runs, all_experiments(client)))
    models = list(paginate(client.search_logged_models, list(experiments)))
    first = {run.info.run_id: origin(run.data.tags, run.info.run_id) for run in runs}
    first |= {model.model_id: origin(model.tags, model.model_id) for model in models}

    def made(value):
        """Ids of this store, in whatever they are, as those where it was made."""
        if isinstance(value, dict):
            return {made(key): made(one) for key, one in value.items() if key not in OWN}
        if isinstance(value, list | tuple):
            return [made(one) for one in value]
        return ID.sub(lambda found: first.get(found[0], found[0]), value) if isinstance(value, str) else value

    def points(metrics):
        return sorted((m.key, m.step, m.timestamp, repr(m.value)) for m in metrics)

    def files(**whose):
        folder = Path(artifacts_of(client, **whose).download_artifacts(""))
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): _content(path, made) for path in found}

    def run_of(run):
        here = run.info.run_id
        return {
            "experiment": experiments[run.info.experiment_id].name,
            "about": [run.info.run_name, run.info.status, run.info.start_time, run.info.end_time, run.info.user_id],
            "params": run.data.params,
            "tags": run.data.tags,
            "metrics": [points(client.get_metric_history(here, name)) for name in sorted(run.data.metrics)],
            "data": [
                (d.dataset.to_dictionary(), [(t.key, t.value) for t in d.tags]) for d in run.inputs.dataset_inputs
            ],
            "inputs": sorted(made(m.model_id) for m in run.inputs.model_inputs),
            "outputs": sorted((made(m.model_id), m.step) for m in run.outputs.model_outputs) if run.outputs else [],
            "files": files(run_id=here) if artifacts_of(client, run_id=here).list_artifacts() else {},
        }

    def model_of(model):
        return {
            "about": [model.name, str(model.status), model.model_type or None, model.source_run_id],
            "params": model.params,
            "tags": model.tags,
            "metrics": points(model.metrics or ()),
            "files": files(model_id=model.model_id),
        }

    def version_of(version):
        return {
            "run": version.run_id,
            "source": version.source,
            "description": version.description,
            "tags": version.tags,
            "identity": identity(version),
        }

    def registered_of(registered):
        versions = paginate(client.search_model_versions, f"name = '{registered.name}'")
        return {
            "about": [registered.description, registered.tags],
            "aliases": {
                alias: int(number) for alias, number in client.get_registered_model(registered.name).aliases.items()
            },
            "versions": {int(version.version): made(version_of(version)) for version in versions},
        }

    return {
        "experiments": {e.name: e.tags for e in experiments.values() if e.name != "Default"},
        "runs": {first[run.info.run_id]: made(run_of(run)) for run in runs},
        "models": {first[model.model_id]: made(model_of(model)) for model in models},
        "registered": {r.name: registered_of(r) for r in paginate(client.search_registered_models)},
    }


def _content(path, made):
    if path.name != "MLmodel":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    described = yaml.safe_load(path.read_text())
    return made({key: value for key, value in described.items() if key != "artifact_path"})

"""List all of what a store has: MLflow's searches answer in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlflow
from mlflow.entities import Run

from cnnlab.tracking.tag_names import TAG, UNDELIVERED

OURS = f"tags.`{TAG}process` != ''"  # the condition for runs that cnnlab made, in whatever experiment


def paginate(search: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yield all results of one of MLflow's searches, page by page."""
    token = None
    while True:
        page = search(*args, **kwargs, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def all_experiments(client: mlflow.MlflowClient) -> list[str]:
    """Return the ids of all active experiments."""
    return [e.experiment_id for e in paginate(client.search_experiments)]


def running_runs(client: mlflow.MlflowClient) -> Iterator[Run]:
    """Yield all runs of cnnlab that are RUNNING, but for copies that are not whole, which their delivery ends."""
    running = paginate(client.search_runs, all_experiments(client), f"attributes.status = 'RUNNING' and {OURS}")
    return (run for run in running if UNDELIVERED not in run.data.tags)

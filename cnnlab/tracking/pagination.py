"""List all of what a store has: every page of MLflow's searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlflow
from mlflow.entities import Run

from cnnlab.tracking.tag_names import TAG, UNDELIVERED

# Runs that we made, in whatever experiment.
OURS = f"tags.`{TAG}process` != ''"


def every(search: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Give all results of one of MLflow's searches, page by page."""
    token = None
    while True:
        page = search(*args, **kwargs, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def all_experiments(client: mlflow.MlflowClient) -> list[str]:
    """Return the ids of all active experiments."""
    return [e.experiment_id for e in every(client.search_experiments)]


def running_runs(client: mlflow.MlflowClient) -> Iterator[Run]:
    """Give all runs of ours that are RUNNING, but for those that are being delivered, which the delivery ends."""
    running = every(client.search_runs, all_experiments(client), f"attributes.status = 'RUNNING' and {OURS}")
    return (run for run in running if UNDELIVERED not in run.data.tags)

"""All of what a store lists, page by page."""

from cnnlab.tracking.tag_names import TAG, UNDELIVERED

# Runs that we made, in whatever experiment.
OURS = f"tags.`{TAG}process` != ''"


def every(search, *args, **kwargs):
    """All results of one of MLflow's searches, page by page."""
    token = None
    while True:
        page = search(*args, **kwargs, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def all_experiments(client) -> list[str]:
    """The ids of all active experiments."""
    return [e.experiment_id for e in every(client.search_experiments)]


def running_runs(client):
    """All runs of ours that are RUNNING, but for those on their way from an outbox, which their delivery ends."""
    running = every(client.search_runs, all_experiments(client), f"attributes.status = 'RUNNING' and {OURS}")
    return (run for run in running if UNDELIVERED not in run.data.tags)

"""One worker process of a search: `python -m tuning.worker NAME SETTINGS`."""

import json
import sys

from cnnlab.errors import LabError
from cnnlab.job import job
from cnnlab.models import Range
from cnnlab.recipe import Recipe
from tuning.settings import Search


def main(name, settings) -> None:
    """A worker: run trials for the chief until it says to stop."""
    settings = json.loads(settings)
    settings["recipe"] = Recipe(**settings["recipe"])
    settings["space"] = {
        key: Range(**values) if isinstance(values, dict) else tuple(values) for key, values in settings["space"].items()
    }
    with job():
        from tuning.search import work_for_chief

        work_for_chief(Search(**settings), name)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except LabError as error:
        sys.exit(f"error: {error}")

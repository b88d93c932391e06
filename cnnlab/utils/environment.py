"""Read environment variables: the only place that does, with one table of those that cnnlab knows.

They are defaults that a user sets once. cnnlab never writes one to hand an option on: options are arguments.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType

# Variable to what it is for. docs/environment.md lists them with their defaults.
VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "CNNLAB_CACHE": "folder of decoded pictures and of features of frozen layers",
        "CNNLAB_CACHE_GB": "gigabytes that this folder may hold",
        "CNNLAB_CHECKPOINT": "seconds between two checkpoints of a training, 0 for every epoch, or none; --checkpoint",
        "CNNLAB_DEVICES": "GPUs that share every batch of a training: auto or a number; --devices",
        "CNNLAB_RECHECK": "anything to compare the files of a folder with its stored pictures byte by byte; --recheck",
        "CNNLAB_STORED_CODE": "run to let the code of a store's custom models run",
        "CNNLAB_TOKEN": "bearer token that cnnlab serve asks for; --token",
        "MLFLOW_EXPERIMENT_ID": "experiment of the runs in the store that MLFLOW_TRACKING_URI names, by its id",
        "MLFLOW_EXPERIMENT_NAME": "experiment of the runs; --experiment",
        "MLFLOW_RUN_ID": "running run that ours are below",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "names that cnnlab ui may be called by, separated by commas",
        "MLFLOW_TRACKING_URI": "store of the runs: a database or the address of an MLflow server",
        "XDG_CACHE_HOME": "the user's cache folder, which cnnlab's is in",
        "NO_COLOR": "anything for a screen without colours and progress bars",
        "TERM": "kind of the terminal; dumb has no colours and progress bars",
        "KERAS_BACKEND": "another value than tensorflow is reported, and not used",
        "OMP_NUM_THREADS": "CPU cores that Ray gives to a job",
        "TF_NUM_INTRAOP_THREADS": "threads of TensorFlow's operations",
        "_MLFLOW_SERVER_FILE_STORE": "store of MLflow's server, which sets it itself",
    }
)


def read_variable(name: str) -> str | None:
    """Read an environment variable of the table; `None` where it is not set, or empty."""
    if name not in VARIABLES:
        raise KeyError(f"{name} is not in cnnlab.utils.environment.VARIABLES")
    return os.environ.get(name) or None

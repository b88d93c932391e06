"""Audit a data set before it is trained on: find pictures that are duplicates, mislabelled, unusual or unreadable."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt

from cnnlab.data.image_dataset import ImageDataset
from cnnlab.data.pictures import Pictures
from cnnlab.errors import ArgumentError, LabError
from cnnlab.evaluation import audit_report
from cnnlab.evaluation.audit_page import audit_page
from cnnlab.evaluation.label_issues import check_labels, compact, strangeness
from cnnlab.recipe import Recipe, RunOptions
from cnnlab.resolve import Prepared, build_model, prepare
from cnnlab.tracking import mlflow_store, run_logging
from cnnlab.tracking.provenance import data_tags, environment_tags, file_tags
from cnnlab.tracking.recorder import Recorder
from cnnlab.tracking.session import Session
from cnnlab.training.frozen_layers import compute_features
from cnnlab.utils.log import log
from cnnlab.utils.signals import signals_held
from cnnlab.utils.text import escape_control_characters, markdown

PARAMS = ("backbone", "weights", "image_size", "stored_size", "resize_mode", "limit", "split_seed")


@dataclasses.dataclass(frozen=True)
class Audit:
    """What an audit gave: `lines` for the screen, the `folder` with the report, and the `run_id`; `None` where the
    store may only be read.
    """

    lines: list[str]
    folder: Path
    run_id: str | None


def audit(recipe: Recipe, folder: str | Path | None = None, *, options: RunOptions | None = None) -> Audit:
    """Look at all pictures of a data set, write a report, and record it as a run.

    The labels are judged by a head on the features of a frozen backbone, which are kept and found again as those of a
    training.

    Args:
        recipe: of the model `transfer`; its data, sizes, backbone and weights are used.
        folder: for the report; `audit-<data set>` here by default.
        options: say which experiment it is recorded in, and whether stored pictures are checked.

    Raises:
        ArgumentError: the folder holds other files, or the data are not understood.
        LabError: the backbone cannot be had, or the report cannot be written.

    Example:
        recipe = cnnlab.Recipe(model="transfer", backbone="vgg16", weights="random", dataset="digits", limit=150)
        report = cnnlab.audit(recipe)
        print(report.lines, report.folder / "report.html")
    """
    started = time.perf_counter()
    name = recipe.dataset or ""
    name = Path(name).resolve().name if os.path.isdir(name) else name
    folder = Path(folder or f"audit-{name or 'root'}").resolve()
    _expect_ours(folder)
    recipe = dataclasses.replace(recipe, skip_bad=True, drop_duplicates=False, dense_units=0, dropout=0.0)
    options = options or RunOptions()
    with Session(writes=False, options=options) as session:
        [(dataset, prepared)] = prepare([recipe], for_audit=True, options=options)
        found = _findings(dataset, prepared)
        texts = {audit_report.REPORT: audit_page(found), **audit_report.tables(found)}
        _write(folder, texts)
        recorder, run_id = session.recorder(), None
        if not mlflow_store.is_read_only():
            run_id = _record(recorder, dataset, prepared, found, texts, started)
    return Audit(audit_report.sentences(found), folder, run_id and recorder.id_to_show(run_id))


def _findings(dataset: ImageDataset, prepared: Prepared) -> audit_report.Findings:
    pictures, summary, classes = dataset.pictures, dataset.summary, len(dataset.class_names)
    assert pictures is not None, "the data set was not loaded for an audit"
    assert summary is not None, "a data set of pictures has a summary"
    used = pictures.positions("train", "val", "test")
    features, labels = compact(_features(dataset, pictures, prepared.recipe, used)), pictures.labels[used]
    total = len(pictures.labels)
    check, distances = check_labels(features, labels, classes), np.full(total, np.nan)
    distances[used] = strangeness(features, labels)
    weak = ""
    if prepared.recipe.weights == "random":
        weak = "the network has random weights, not pre-trained ones. Name other weights or another backbone."
        log.warning(f"the label check is weak: {weak}")
    return audit_report.Findings(
        **{"name": dataset.name, "class_names": dataset.class_names, "lines": summary.lines},
        **{"files": pictures.files, "labels": pictures.labels, "splits": pictures.splits},
        sizes=pictures.stored.sizes,
        **{"bad": pictures.stored.bad, "left_out": summary.left_out, "pairs": summary.duplicates},
        duplicates=summary.tables["duplicates.csv"],
        check=check and check.at(used, total),
        strangeness=distances,
        basis=f"features of {prepared.recipe.label}",
        weak=weak,
        pixels=lambda positions: pictures.rows(positions)[:],
    )


def _features(
    dataset: ImageDataset, pictures: Pictures, recipe: Recipe, used: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """Compute the features, `(n, D)`, of the pictures at the positions `used`, `(n,)`."""
    if not len(used):  # none decodes
        return np.empty((0, 1), "float32")
    model = build_model(recipe, dataset)
    front = keras.Model(model.inputs[0], model.get_layer("probabilities").input)
    dtype = "float16" if recipe.feature_dtype == "float16" else "float32"
    features = compute_features(front, pictures.images(used), dtype=dtype)
    if features is None:
        raise LabError(
            "Expected room for the features of all pictures. Received: too little, on the disk and in memory. Make "
            "room, name another folder with CNNLAB_CACHE, or set limit."
        )
    return np.asarray(features[0][:], "float32")


def _expect_ours(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier report."""
    above = next(parent for parent in folder.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ArgumentError(
            f"Expected a folder that can be written for the report. Received: '{folder}' in '{above}', which cannot. "
            "Name another one as out."
        )
    if not folder.exists():
        return
    there = sorted(os.listdir(folder)) if folder.is_dir() else [folder.name]
    report = folder / audit_report.REPORT
    ours = report.is_file() and audit_report.MARK in report.read_text(encoding="utf-8", errors="replace")[:2000]
    if others := [name for name in there if not (ours and name in audit_report.FILES)]:
        raise ArgumentError(
            f"Expected a new folder for the report, or one with an earlier report only. Received: '{folder}', which "
            f"holds {others[0]}. Name another one as out."
        )


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write the whole report or nothing: into a folder beside, which is renamed."""
    fresh, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        run_logging.write_results(fresh, {}, texts)
        _expect_ours(folder)  # again: the pass may have taken long
        with signals_held():
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
    except OSError as error:
        raise LabError(
            f"Expected to write the report to '{folder}'. Received: {error.strerror}. Name another folder as out."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _record(
    recorder: Recorder,
    dataset: ImageDataset,
    prepared: Prepared,
    found: audit_report.Findings,
    texts: dict[str, str],
    started: float,
) -> str:
    """Record a run with the report; return the id under which it is recorded."""
    recipe = prepared.recipe
    params = {name: value for name in PARAMS if (value := getattr(recipe, name)) is not None}
    with recorder.start(
        recorder.experiment_for(dataset),
        f"audit {escape_control_characters(dataset.name)}",
        params=params,
        tags={
            **{"kind": "audit", "figure": audit_report.REPORT, **data_tags(dataset), "validation": None},
            **{**environment_tags(), **file_tags(recipe), **prepared.tags},
        },
        description=f"What is twice, strange or likely mislabelled in **{markdown(dataset.name)}**.",
        dataset=dataset,
    ) as run_id:
        seconds = round(time.perf_counter() - started, 1)
        metrics = {**audit_report.metrics(found), "total_seconds": seconds}
        run_logging.log_results(metrics, audit_report.figures(found), texts)
        run_logging.describe_run("\n".join(f"- {markdown(line.strip())}" for line in audit_report.sentences(found)))
    return run_id

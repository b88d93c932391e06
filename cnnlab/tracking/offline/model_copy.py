"""Copy registered models from one store to another: versions with their descriptions and tags, and aliases.

A version keeps its number unless that is taken. A tag holds the name and number it had in the store that made it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import mlflow
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from cnnlab.tracking.maintenance.stored_rows import model_in
from cnnlab.tracking.model_registry import CHAMPION
from cnnlab.tracking.offline.run_copy import Transfer, origin
from cnnlab.tracking.pagination import paginate
from cnnlab.tracking.promotion import PREVIOUS, REPLACED
from cnnlab.tracking.tag_names import RECORDED_AS, UNDELIVERED, matches


class Origin(NamedTuple):
    """What a version in the target is made from: the address of its files, its run, and its logged model if any."""

    source: str
    run_id: str
    model_id: str | None


def copy_registered(transfer: Transfer, wanted_runs: set[str] | None, moves_aliases: bool) -> Iterator[str]:
    """Copy the versions whose runs are in the target, or are wanted too, as a generator of sentences.

    With `moves_aliases`, aliases that another version holds in the target are moved.
    """
    for registered in paginate(transfer.source.search_registered_models):
        versions = _versions_of(transfer.source, registered.name)
        versions = [v for v in versions if wanted_runs is None or v.run_id in wanted_runs]
        numbers: dict[int, int] = {}  # in the source, to those in the target
        for version in sorted(versions, key=_number):
            called, number = f"{version.name} version {version.version}", _number(version)
            made_from = _origin(transfer, version)
            if made_from is None:
                yield f"not carried: {called}, since its run or its model is not there"
                continue
            found = _find(transfer, version, made_from.source, set(numbers.values()))
            numbers[number] = found or _make(transfer, registered, version, made_from)
            (transfer.present if found else transfer.copied)["version"] += 1
            if found:
                continue
            yield f"copied: {called}" + f", as version {numbers[number]}" * (numbers[number] != number)
            if version.current_stage not in (None, "None"):
                yield f"not carried: {called} is in stage {version.current_stage}, and aliases took the place of stages"
        for version in versions:
            if _number(version) in numbers:
                _complete(transfer, version, numbers)
        yield from _copy_aliases(transfer, registered.name, numbers, moves_aliases)


def _versions_of(client: Any, name: str) -> list[ModelVersion]:
    # The condition may let similar names through.
    return [v for v in paginate(client.search_model_versions, matches("name", name)) if v.name == name]


def _number(version: ModelVersion) -> int:
    return int(version.version)


def identity(version: ModelVersion) -> str:
    """Return what a version was called where it was made, which is equal in every store."""
    model = model_in(version.source) or version.run_id
    return origin(version.tags, f"{version.name}/{version.version} {model}")


def _origin(transfer: Transfer, version: ModelVersion) -> Origin | None:
    """Return what a version in the target is made from; `None` where its run or model is not there."""
    run_id, model_id, source = transfer.run_ids.get(version.run_id or ""), model_in(version.source), version.source
    if run_id is None:
        return None
    if model_id:
        target_id = _target_model(transfer, model_id, run_id)
        return Origin(f"models:/{target_id}", run_id, target_id) if target_id else None
    files = transfer.source.get_run(str(version.run_id)).info.artifact_uri  # of a version of MLflow 2
    if not source or not files or not source.startswith(files):
        return None
    return Origin(transfer.target.get_run(run_id).info.artifact_uri + source.removeprefix(files), run_id, None)


def _target_model(transfer: Transfer, model_id: str, target_run_id: str) -> str | None:
    if model_id in transfer.model_ids:
        return transfer.model_ids[model_id]
    with contextlib.suppress(mlflow.MlflowException):  # it was deleted in one of the stores
        model = transfer.source.get_logged_model(model_id)
        copies = transfer.copies_of_model(model, target_run_id)
        return copies[0] if copies else transfer.target.get_logged_model(origin(model.tags, model_id)).model_id
    return None


def _find(transfer: Transfer, version: ModelVersion, source: str, taken: set[int]) -> int | None:
    """Return the number of the version in the target that is this one, or that registers the same model already."""
    others = [v for v in _versions_of(transfer.target, version.name) if _number(v) not in taken]
    same = [v for v in others if identity(v) == identity(version)]
    same += [v for v in others if RECORDED_AS not in v.tags and v.source == source]
    return _number(same[0]) if same else None


def _make(transfer: Transfer, registered: RegisteredModel, version: ModelVersion, made_from: Origin) -> int:
    target, name = transfer.target, version.name
    tags = {key: value for key, value in version.tags.items() if key != REPLACED}
    tags |= {RECORDED_AS: identity(version), UNDELIVERED: "copying"}
    with contextlib.suppress(mlflow.MlflowException):  # the target has it
        target.create_registered_model(name, registered.tags, registered.description)
    # MLflow numbers versions one by one. Numbers that were deleted in the source are used up, so that ours is kept.
    last = max(map(_number, _versions_of(target, name)), default=0)
    while last < _number(version) - 1:
        unused = target.create_model_version(name, target.get_run(made_from.run_id).info.artifact_uri, made_from.run_id)
        target.delete_model_version(name, unused.version)
        last = _number(unused)
    about = {"description": version.description, "model_id": made_from.model_id}
    return _number(target.create_model_version(name, made_from.source, made_from.run_id, tags, **about))


def _complete(transfer: Transfer, version: ModelVersion, numbers: dict[int, int]) -> None:
    """Tag a champion with the version that it took the alias from, once all versions have their numbers."""
    target, number = transfer.target, str(numbers[_number(version)])
    if UNDELIVERED in target.get_model_version(version.name, number).tags:
        before = numbers.get(int(version.tags.get(REPLACED, 0)))
        if before:
            target.set_model_version_tag(version.name, number, REPLACED, str(before))
        target.delete_model_version_tag(version.name, number, UNDELIVERED)


def _copy_aliases(transfer: Transfer, name: str, numbers: dict[int, int], moves: bool) -> Iterator[str]:
    """Give the copies the aliases of the originals. `previous` moves with the champion, so that it can be undone."""
    if not numbers:
        return
    target = transfer.target
    aliases = transfer.source.get_registered_model(name).aliases
    wanted = {alias: numbers[int(number)] for alias, number in aliases.items() if int(number) in numbers}
    holders = {alias: int(number) for alias, number in target.get_registered_model(name).aliases.items()}
    for alias, number in sorted(wanted.items()):
        held = holders.get(alias)
        if held == number or (alias == PREVIOUS and CHAMPION in aliases):
            continue
        if held and not moves:
            yield f"not moved: {alias} of {name} stays version {held}, and is version {number} by the copy (--aliases)"
            continue
        if alias == CHAMPION and held:
            target.set_model_version_tag(name, str(number), REPLACED, str(held))
        previous = held or wanted.get(PREVIOUS)
        if alias == CHAMPION and previous:
            target.set_registered_model_alias(name, PREVIOUS, str(previous))
        target.set_registered_model_alias(name, alias, str(number))
        transfer.copied["alias"] += 1
        yield f"{alias} of {name} is version {number}" + f", no longer version {held}" * bool(held)

"""Registered models copied from one store to another: versions, aliases, and what is said of them.

A version keeps its number where that is free. Like a run, it carries what it was called where it was made in a tag.
"""

import contextlib

import mlflow

from cnnlab.tracking.maintenance.stored_rows import model_in
from cnnlab.tracking.model_registry import CHAMPION
from cnnlab.tracking.offline.run_copy import origin
from cnnlab.tracking.pagination import every
from cnnlab.tracking.promotion import PREVIOUS, REPLACED
from cnnlab.tracking.tag_names import RECORDED_AS, UNDELIVERED, matches


def copy_registered(transfer, among, moves_aliases, copied, present):
    """Copy the versions whose runs are there, as a generator of sentences.

    Args:
        transfer: a `Transfer` that has copied the runs.
        among: the ids of the runs whose versions are wanted; `None` for all.
        moves_aliases: also those that another version holds there.
        copied, present: counters, to count in.
    """
    for registered in every(transfer.source.search_registered_models):
        versions = every(transfer.source.search_model_versions, matches("name", registered.name))
        versions = [v for v in versions if v.name == registered.name and (among is None or v.run_id in among)]
        numbers = {}  # here to there
        for version in sorted(versions, key=_number):
            called, number = f"{version.name} version {version.version}", _number(version)
            place = _place(transfer, version)
            if place is None:
                yield f"not carried: {called}, since its run or its model is not there"
                continue
            found = _found(transfer, version, place, set(numbers.values()))
            numbers[number] = found or _made(transfer, registered, version, place)
            (present if found else copied)["version"] += 1
            if found:
                continue
            yield f"copied: {called}" + f", as version {numbers[number]}" * (numbers[number] != number)
            if version.current_stage not in (None, "None"):
                yield f"not carried: {called} is in stage {version.current_stage}, and aliases took the place of stages"
        for version in versions:
            if _number(version) in numbers:
                _finish(transfer.target, version, numbers)
        yield from _aliases(transfer, registered.name, numbers, moves_aliases, copied)


def _number(version):
    return int(version.version)


def _identity(version):
    """What a version was where it was made, in whatever store this is."""
    model = model_in(version.source) or version.run_id
    return origin(version.tags, f"{version.name}/{version.version} {model}")


def _place(transfer, version):
    """`(source, run id, model id)` of a version there, or `None` where its run or model is not there."""
    run_there, model = transfer.runs.get(version.run_id), model_in(version.source)
    if run_there is None:
        return None
    if model:
        found = _model_there(transfer, model, run_there)
        return found and (f"models:/{found}", run_there, found)
    files = transfer.source.get_run(version.run_id).info.artifact_uri  # of a version before MLflow 3
    if not version.source.startswith(files):
        return None
    return transfer.target.get_run(run_there).info.artifact_uri + version.source.removeprefix(files), run_there, None


def _model_there(transfer, model_id, run_there):
    if model_id in transfer.models:
        return transfer.models[model_id]
    with contextlib.suppress(mlflow.MlflowException):  # it was deleted, here or there
        model = transfer.source.get_logged_model(model_id)
        copies = transfer.models_there(model, run_there)
        return copies[0] if copies else transfer.target.get_logged_model(origin(model.tags, model_id)).model_id


def _found(transfer, version, place, taken):
    """The number of the version there that is this one, or that registers the same model already."""
    there = every(transfer.target.search_model_versions, matches("name", version.name))
    there = [v for v in there if v.name == version.name and _number(v) not in taken]
    same = [v for v in there if _identity(v) == _identity(version)]
    same += [v for v in there if RECORDED_AS not in v.tags and v.source == place[0]]
    return _number(same[0]) if same else None


def _made(transfer, registered, version, place):
    """Make a version there, of the same number if that is still to come; returns its number."""
    source, run_there, model = place
    tags = {key: value for key, value in version.tags.items() if key != REPLACED}
    tags |= {RECORDED_AS: _identity(version), UNDELIVERED: "copying"}
    with contextlib.suppress(mlflow.MlflowException):  # it is there already
        transfer.target.create_registered_model(registered.name, registered.tags, registered.description)
    _skip_to(transfer.target, _number(version), version.name, run_there)
    made = transfer.target.create_model_version(
        version.name, source, run_there, tags, description=version.description, model_id=model
    )
    return _number(made)


def _skip_to(target, number, name, run_there):
    """Use up the numbers that were deleted here: MLflow gives a version the number after the last one that it gave."""
    last = max(
        (_number(v) for v in every(target.search_model_versions, matches("name", name)) if v.name == name), default=0
    )
    while last < number - 1:
        unused = target.create_model_version(name, target.get_run(run_there).info.artifact_uri, run_there)
        target.delete_model_version(name, unused.version)
        last = _number(unused)


def _finish(target, version, numbers):
    """Name the version that a champion took its alias from, once all have their numbers."""
    number = str(numbers[_number(version)])
    if UNDELIVERED in target.get_model_version(version.name, number).tags:
        before = numbers.get(int(version.tags.get(REPLACED, 0)))
        if before:
            target.set_model_version_tag(version.name, number, REPLACED, str(before))
        target.delete_model_version_tag(version.name, number, UNDELIVERED)


def _aliases(transfer, name, numbers, moves, copied):
    """Give the copies the aliases of the originals; `previous` goes with the champion, so that it can be undone."""
    if not numbers:
        return
    target = transfer.target
    aliases = transfer.source.get_registered_model(name).aliases
    here = {alias: numbers[int(number)] for alias, number in aliases.items() if int(number) in numbers}
    there = {alias: int(number) for alias, number in target.get_registered_model(name).aliases.items()}
    for alias, number in sorted(here.items()):
        held = there.get(alias)
        if held == number or (alias == PREVIOUS and CHAMPION in aliases):
            continue
        if held and not moves:
            yield f"not moved: {alias} of {name} stays version {held}, and is version {number} by the copy (--aliases)"
            continue
        if alias == CHAMPION and held:
            target.set_model_version_tag(name, str(number), REPLACED, str(held))
        previous = held or here.get(PREVIOUS)
        if alias == CHAMPION and previous:
            target.set_registered_model_alias(name, PREVIOUS, str(previous))
        target.set_registered_model_alias(name, alias, str(number))
        copied["alias"] += 1
        yield f"{alias} of {name} is version {number}" + f", no longer version {held}" * bool(held)

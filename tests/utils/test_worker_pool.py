"""Test jobs on workers that fail or die: pytest tests/utils/test_worker_pool.py"""

import collections
import os
import pickle
import sys
import types
from contextlib import closing

import pytest

import cnnlab
from cnnlab.utils.local_workers import ProcessWorkers
from cnnlab.utils.ray_workers import RayWorkers, expect_address
from cnnlab.utils.worker_pool import LOSSES, Job, JobResult, SharedArgument, ThisProcess, run_jobs, run_pickled


class Losing(ThisProcess):
    """Workers of which the first `lost` that a job is given are lost."""

    def __init__(self, lost):
        super().__init__()
        self.lost, self.started = lost, collections.Counter()

    def room(self):
        return 2

    def start(self, job):
        self.started[job.name] += 1
        super().start(job)

    def next_result(self):
        job = self.waiting[0]
        if self.started[job.name] <= self.lost.get(job.name, 0):
            self.waiting.popleft()
            return JobResult(job, lost="its node burnt")
        return super().next_result()


def outcomes(jobs, workers):
    waiting = iter(jobs)
    return {ended.job.name: ended for ended in run_jobs(lambda: next(waiting, None), workers)}


def test_a_lost_job_is_tried_again_and_said_but_not_for_ever(capsys):
    jobs = [Job(name, len, (name,)) for name in ("one", "three", "four", "eleven")]
    workers = Losing({"three": LOSSES, "four": LOSSES + 1})
    ended = outcomes(jobs, workers)
    assert {name: e.value for name, e in ended.items()} == {"one": 3, "three": 5, "four": None, "eleven": 6}
    assert workers.started == {"one": 1, "three": LOSSES + 1, "four": LOSSES + 1, "eleven": 1}
    assert ended["three"].error is None
    said = capsys.readouterr().err
    assert "warning: three lost its worker: its node burnt; trying it again (3 of 3).\n" in said
    assert said.count("not trying it again") == 1
    with pytest.raises(cnnlab.LabError, match=r"Expected four to end well\. Received: each of 4 workers was lost"):
        ended["four"].result()


def test_an_error_ends_its_own_job_only():
    ended = outcomes([Job("bad", int, ("x",)), Job("good", int, ("7",))], ThisProcess())
    assert ended["good"].result() == 7
    with pytest.raises(ValueError, match="invalid literal"):  # of this process, so it is what it was
        ended["bad"].result()
    value, error = run_pickled(pickle.dumps(Job("bad", int, ("x",))))
    with pytest.raises(cnnlab.LabError, match=r"Received: invalid literal for int\(\) with base 10: 'x'"):
        JobResult(Job("bad", int), value, error).result()
    assert run_pickled(pickle.dumps(Job("sum", sum, ([1], SharedArgument(0)))), [5]) == (6, None)


def test_processes_keep_what_they_load_and_are_replaced_when_they_die(tmp_path, capsys):
    died = tmp_path / "died"
    kill_once = f"(open({str(died)!r}, 'x'), os.kill(os.getpid(), 9)) if not os.path.exists({str(died)!r}) else 5"
    pid, kill_once = (f"(os := __import__('os')) and ({code})" for code in ("os.getpid()", kill_once))
    with closing(ProcessWorkers(1)) as workers:
        jobs = [Job("first", eval, (pid,)), Job("second", eval, (pid,)), Job("deadly", eval, (kill_once,))]
        ended = outcomes([*jobs, Job("fourth", eval, (pid,)), Job("wrong", eval, ("1 / 0",))], workers)
    assert ended["first"].value == ended["second"].value != os.getpid()
    assert ended["deadly"].value == 5
    assert ended["fourth"].value != ended["first"].value
    assert "ZeroDivisionError" in ended["wrong"].error
    assert "deadly lost its worker: ended by SIGKILL; trying it again (1 of 3)" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):  # closed means gone
        os.kill(ended["fourth"].value, 0)


def test_jobs_that_wait_behind_one_that_kills_its_worker_are_run_by_another(tmp_path):
    died = tmp_path / "died"
    code = f"(open({str(died)!r}, 'x'), os.kill(os.getpid(), 9)) if not os.path.exists({str(died)!r}) else 5"
    waiting = iter([Job("deadly", eval, (f"(os := __import__('os')) and ({code})",)), *numbered(range(8))])
    with closing(ProcessWorkers(2, loads_tensorflow=False)) as workers:
        results = {r.job.name: r.value for r in run_jobs(lambda: next(waiting, None), workers, ahead=3)}
    assert results == {"deadly": 5, **{str(i): i for i in range(8)}}


def numbered(numbers):
    return [Job(str(number), eval, (str(number),)) for number in numbers]


def cluster(*nodes):
    """What of Ray is asked before there is a job."""
    alive = [{"Alive": True, "NodeManagerAddress": f"10.9.8.{i}", "Resources": node} for i, node in enumerate(nodes)]
    dead = {"Alive": False, "NodeManagerAddress": "10.9.8.7", "Resources": {"CPU": 64}}
    return types.SimpleNamespace(nodes=lambda: [*alive, dead], remote=lambda **options: lambda function: options)


@pytest.mark.parametrize(
    ("nodes", "asked", "needed", "room"),
    [
        ([{"CPU": 4}, {"CPU": 2}], {}, {"CPU": 1, "GPU": 0}, 6),
        ([{"CPU": 4}, {"CPU": 2}], {"cpus": 3}, {"CPU": 3, "GPU": 0}, 1),
        ([{"CPU": 96, "GPU": 8}, {"CPU": 64}], {}, {"CPU": 12, "GPU": 1}, 8),
        ([{"CPU": 96, "GPU": 8}], {"gpus": 0.5}, {"CPU": 6, "GPU": 0.5}, 16),
        ([{"CPU": 96, "GPU": 8}], {"cpus": 2, "gpus": 0, "limit": 5}, {"CPU": 2, "GPU": 0}, 5),
    ],
)
def test_what_a_job_asks_a_cluster_for(nodes, asked, needed, room):
    arguments = {"cpus": None, "gpus": None, "limit": None, "variables": {}, **asked}
    workers = RayWorkers(cluster(*nodes), "host:6379", **arguments)
    assert workers.needed == needed
    assert workers.room() == room
    assert workers.call == {"max_retries": 0, "num_cpus": needed["CPU"], "num_gpus": needed["GPU"]}
    assert workers.elsewhere[0] == "10.9.8.0"


def test_a_cluster_without_room_is_refused():
    arguments = {"cpus": 8, "gpus": None, "limit": None, "variables": {}}
    with pytest.raises(cnnlab.ArgumentError, match=r"a node with 8 CPUs .* Received: 1 nodes, the largest with 4 CPUs"):
        RayWorkers(cluster({"CPU": 4}), "host:6379", **arguments)


def test_addresses_of_a_cluster_are_checked(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    sys.modules["ray"].__spec__ = types.SimpleNamespace()
    for on in ("ray", "10.0.0.1:6379", "ray://head.example:10001", "[::1]:6379"):
        expect_address(on)
    for on in ("", "local", "http://head:8265", "head", "ray://head"):
        with pytest.raises(cnnlab.ArgumentError, match="Expected the cluster \\(--on\\) to be ray"):
            expect_address(on)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(cnnlab.ArgumentError, match=r"pip install 'cnnlab\[ray\]'"):
        expect_address("ray")

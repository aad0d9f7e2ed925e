"""When jobs run: schedules by hand, and what holds for any graph on any machine."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from guardrail.study.planning.simulate import Task, longest_chain, one_after_the_other, simulate


def test_two_cores_by_hand():
    """a (2 s), then b (3) and c (1) side by side, then d (1): 6 s on two cores, 7 on one."""
    tasks = [Task("a", 2), Task("b", 3, ("a",)), Task("c", 1, ("a",)), Task("d", 1, ("b", "c"))]
    assert simulate(tasks, {"jobs": 1}).wall_sec == 7
    two = simulate(tasks, {"jobs": 2})
    assert two.wall_sec == 6 and two.starts == {"a": 0, "b": 2, "c": 2, "d": 5}
    assert two.critical == ("a", "b", "d") and two.critical_sec == 6


def gpu(name: str, seconds: float, n: int, needs: tuple[str, ...] = (), rank: int = 1) -> Task:
    return Task(name, seconds, needs, {"jobs": 1, "gpus": n}, rank)


NODE = {"jobs": 6, "gpus": 4, "cpu_jobs": 2}


def test_training_takes_all_gpus_and_other_jobs_share_them_by_hand():
    """Two trainings of 10 s on four GPUs, eight evaluations of 5 s on one: 10 + 10 + 2 x 5 = 30 s."""
    tasks = [gpu("train1", 10, 4, rank=0), gpu("train2", 10, 4, rank=0)]
    tasks += [gpu(f"eval{i}", 5, 1, ("train1",)) for i in range(4)]
    tasks += [gpu(f"eval{i}", 5, 1, ("train2",)) for i in range(4, 8)]
    assert simulate(tasks, NODE).wall_sec == 30


def test_a_training_that_waits_lets_smaller_jobs_go_ahead():
    """While one evaluation (20 s) holds a GPU, three more (5 s) run beside it; the training begins when all have
    ended."""
    tasks = [gpu("long", 20, 1), gpu("train", 10, 4, rank=0, needs=("mix",))]
    tasks += [Task("mix", 1, (), {"jobs": 1, "cpu_jobs": 1})] + [gpu(f"short{i}", 5, 1) for i in range(3)]
    schedule = simulate(tasks, NODE)
    assert schedule.starts["train"] == 20 and max(schedule.ends[f"short{i}"] for i in range(3)) == 5


def test_what_can_never_start_is_refused():
    with pytest.raises(ValueError, match="holds 8 of gpus; there are 4"):
        simulate([gpu("train", 1, 8)], NODE)
    with pytest.raises(ValueError, match="wait for each other"):
        simulate([Task("a", 1, ("b",)), Task("b", 1, ("a",))], {"jobs": 1})


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 14))
    tasks = []
    for i in range(n):
        needs = tuple(f"t{j}" for j in range(i) if draw(st.integers(0, 3)) == 0)
        holds = {"jobs": 1, "gpus": draw(st.sampled_from([0, 1, 4]))}
        tasks.append(Task(f"t{i}", draw(st.integers(0, 9)), needs, holds, draw(st.integers(0, 1))))
    return tasks


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(graphs(), st.integers(1, 4))
def test_any_schedule_keeps_needs_and_limits_and_wastes_no_more_than_it_must(tasks, jobs):
    limits = {"jobs": jobs, "gpus": 4}
    schedule = simulate(tasks, limits)
    assert set(schedule.ends) == {task.name for task in tasks}
    for task in tasks:
        assert schedule.ends[task.name] == schedule.starts[task.name] + task.seconds
        assert all(schedule.ends[need] <= schedule.starts[task.name] for need in task.needs)
    for now in set(schedule.starts.values()):
        for resource, limit in limits.items():
            held = sum(
                task.resources[resource]
                for task in tasks
                if schedule.starts[task.name] <= now < schedule.ends[task.name]
            )
            assert held <= limit
    # never faster than the longest chain or the work shared out, never slower than one after the other
    work = sum(task.seconds for task in tasks)
    assert max(schedule.critical_sec, work / jobs) <= schedule.wall_sec <= work
    assert schedule.critical_sec == longest_chain(tasks)[1]


def test_batches_come_one_after_the_other_by_hand():
    """3 s, a pause of 2 s, then 4 s: the second begins at 5 and ends at 9; no machine is faster than 3 + 2 + 4."""
    one, two = (simulate([Task(name, seconds)], {"jobs": 2}) for name, seconds in (("a", 3), ("b", 4)))
    both = one_after_the_other([one, two], 2.0)
    assert both.starts == {"a": 0, "b": 5} and both.wall_sec == both.critical_sec == 9
    assert both.critical == ("a", "b") and one_after_the_other([], 2.0).wall_sec == 0


def test_needs_that_are_done_count_nothing():
    assert simulate([Task("a", 2, ("done before",))], {"jobs": 1}).wall_sec == 2

"""The best part of a study within a budget: against trying everything, on small made-up grids."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st

from guardrail.study.planning.search import Choice, Found, Space, alternatives, best, cheapest, within


@st.composite
def spaces(draw):
    """Costs that add up over parts, as those of jobs do, and variances that shrink with seeds and prompts."""
    tasks = tuple("abc"[: draw(st.integers(1, 3))])
    sizes = tuple(range(1, draw(st.integers(1, 2)) + 1))
    seeds, prompts = tuple(range(2, draw(st.integers(2, 4)) + 1)), (10, 20)
    n_controls = draw(st.integers(0, 3))
    price = {task: draw(st.integers(1, 9)) for task in tasks}
    arm = [draw(st.integers(0, 5)) for _ in range(n_controls)]
    per_prompt, fixed = draw(st.integers(0, 3)) / 10, draw(st.integers(0, 4))
    noise = draw(st.integers(1, 40))

    def hours(choice: Choice) -> float:
        trained = sum(price[task] for task in choice.tasks) * len(choice.sizes)
        return fixed + choice.seeds * (trained + sum(arm[: choice.controls]) + per_prompt * choice.prompts)

    def points(choice: Choice) -> float:
        return (noise / choice.seeds + 100 / (choice.seeds * choice.prompts)) / len(choice.tasks)

    enough = draw(st.sampled_from([0.001, 2.0, 8.0]))
    return Space(tasks, sizes, seeds, prompts, n_controls, enough, hours, points)


def everything(space: Space) -> list[Found]:
    choices = (
        Choice(tuple(tasks), tuple(sizes), seeds, prompts, controls)
        for n in range(1, len(space.tasks) + 1)
        for tasks in itertools.combinations(space.tasks, n)
        for m in range(1, len(space.sizes) + 1)
        for sizes in itertools.combinations(space.sizes, m)
        for seeds in space.seeds
        for prompts in space.prompts
        for controls in range(space.n_controls + 1)
    )
    return [Found(choice, space.hours(choice), space.points(choice)) for choice in choices]


@hypothesis.settings(max_examples=120, deadline=None)
@hypothesis.given(spaces(), st.integers(1, 120))
def test_the_proposal_is_the_best_of_everything_that_fits(space, budget):
    fitting = [found for found in everything(space) if found.hours <= budget]
    proposal = best(space, budget)
    if not fitting:
        assert proposal is None
        assert cheapest(space).hours == min(found.hours for found in everything(space))
        return
    assert proposal is not None and proposal.hours <= budget
    assert space.rank(proposal) == min(map(space.rank, fitting))
    # in words: what is detected comes first, down to the smallest difference that matters
    assert max(round(proposal.points, 2), space.enough) == min(max(round(f.points, 2), space.enough) for f in fitting)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(spaces(), st.integers(20, 120))
def test_alternatives_fit_differ_and_are_better_at_what_they_say(space, budget):
    proposal = best(space, budget)
    if proposal is None:
        return
    others = alternatives(space, budget, proposal)
    assert len({found.choice for _, found in others} | {proposal.choice}) == len(others) + 1
    fitting = within(space, budget)
    for what, found in others:
        assert found.hours <= budget
        if what == "smallest detectable difference":
            assert found.points <= proposal.points and found.points == min(f.points for f in fitting)
        if what == "half the budget":
            assert found.hours <= budget / 2

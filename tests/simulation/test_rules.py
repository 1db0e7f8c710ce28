"""The rules keep every law in 10,000 simulated worlds, and the laws catch every wrong rule."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_green.policy.document import Policy
from mlflow_green.records import Mode, Unit
from tests.simulation.laws import Broken
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenario import PLAIN, policy, scenario_of
from tests.simulation.world import World

SEEDS = 10_000
SEEDS_OF_A_MUTANT = 500
RARE = "a_promised_hold_is_charged_once_only"  # needs three accidents in a row
DIGESTS = """
from tests.simulation.world import World
print([World(seed).run().digest() for seed in range(50)])
"""


@pytest.mark.timeout(900)  # 45 s of a core of two that others use too
def test_no_law_is_broken_in_ten_thousand_worlds():
    ran, over = 0, 0
    for seed in range(SEEDS):
        world = World(seed).run()
        held = [job for job in world.jobs.values() if job.began_ms is not None and job.ticket.hold]
        ran += len(held)
        over += sum(job.used_microjoules(world.clock.ms) > job.ticket.hold.amounts.get(Unit.ENERGY, 0) for job in held)
    assert over >= 0.3 * ran, f"{over} of {ran} steps used more than their first hold: the world is too tame"


def test_a_seed_replays_to_the_same_history():
    assert [World(seed).run().digest() for seed in range(50)] == [World(seed).run().digest() for seed in range(50)]


def test_a_seed_replays_to_the_same_history_in_another_process():
    environment = {**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"}
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", DIGESTS], cwd=root, env=environment, capture_output=True, check=True)
    assert told.stdout.decode().strip() == str([World(seed).run().digest() for seed in range(50)])


def stormy(seed: int) -> World:
    """A world that only observes, where most answers are lost and every client is taken for dead, and then dies."""
    scenario = scenario_of(random.Random(seed))
    return World(seed, replace(scenario, policy=policy(5), site=PLAIN, loses=0.6, kills=1.0, is_thought_dead=1.0))


def first_broken(mutant: str, world_of: Callable[[int], World] = World) -> str | None:
    with MUTANTS[mutant]():
        for seed in range(SEEDS_OF_A_MUTANT):
            try:
                world_of(seed).run()
            except Broken as broken:
                return str(broken)
    return None


def test_no_law_is_broken_in_a_storm():
    for seed in range(200):
        stormy(seed).run()


def test_a_wrong_rule_about_steps_that_ran_without_the_ledgers_word_is_seen_in_a_storm():
    assert first_broken(RARE, stormy) is not None


@pytest.mark.parametrize("mutant", sorted(MUTANTS.keys() - {RARE}))
def test_a_wrong_rule_is_seen(mutant):
    assert first_broken(mutant) is not None, f"{mutant} survives {SEEDS_OF_A_MUTANT} seeds: the world is too tame"


def test_a_broken_law_is_told_with_its_history_the_last_event_first_and_how_to_see_it_again():
    story = first_broken("a_lost_hold_is_charged_its_last_reading").splitlines()
    assert "a lost step is charged all that it used" in story[0]
    assert "python -m tests.simulation.world" in story[1]
    times = [float(line.split()[0]) for line in story[2:]]
    assert times == sorted(times, reverse=True)
    assert len(times) > 5


def decided(world: World) -> list[tuple]:
    """What ran, as which tier, and what was halted."""
    return [
        (ms, words[0], words[1], words[2])
        for ms, *words in world.history
        if len(words) > 2 and words[1] in {"gets", "begins", "is halted:"} and "ledger" not in str(words)
    ]


def without_watched(policy: Policy) -> Policy:
    acting = tuple(budget for budget in policy.budgets if budget.mode is not Mode.OBSERVE)
    return policy.model_copy(update={"budgets": acting})


def test_the_same_steps_run_at_the_same_times_when_a_watched_budget_is_taken_away():
    compared = 0
    for seed in range(400):
        dice = random.Random(seed)
        scenario = replace(scenario_of(dice), raises=0.0)
        acting = without_watched(scenario.policy)
        if not 0 < len(acting.budgets) < len(scenario.policy.budgets):
            continue
        compared += 1
        alone = World(seed, replace(scenario, policy=acting)).run()
        assert decided(World(seed, scenario).run()) == decided(alone), seed
    assert compared >= 30

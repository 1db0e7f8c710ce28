"""What travels with a job comes out as it went in, and garbage is told from it."""

from __future__ import annotations

import base64
import json
import re
import string
import zlib
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_green.errors import SettingsError
from mlflow_green.policy.leash import Leash
from mlflow_green.recorder.placement import VARIABLE, PlacedStep, Placement, is_enforced
from mlflow_green.records import (
    Action,
    AlertRule,
    Decision,
    Embodied,
    EmbodiedShare,
    Estimate,
    Hold,
    HoldRequest,
    Intensity,
    IntensitySeries,
    Mode,
    Owner,
    Site,
    Step,
    StepSpec,
    Term,
    Tier,
    Unit,
)
from tests.testkit.ledger_samples import NOON, OWNER, term

ENVIRONMENT_CHARACTERS_MAX = 100_000  # Linux takes 131,072 of one variable, name included

TEXT = st.text(max_size=20)
NAMES = st.text(string.ascii_lowercase + string.digits + "_-ä 中\n'\"$", min_size=1, max_size=20)
IDS = st.uuids().map(lambda each: each.hex)
AMOUNTS = st.dictionaries(st.sampled_from(Unit), st.integers(0, 10**18))
RATIOS = st.floats(0.01, 1.0)
TIMES = st.integers(0, 10**9).map(lambda microseconds: NOON + timedelta(microseconds=microseconds))
OWNERS = st.builds(
    Owner,
    host=NAMES,
    boot_id=IDS,
    pid=st.integers(1, 2**22),
    started_ticks=st.integers(0, 2**40),
    spool_dir=st.none() | NAMES,
)
STEPS = st.builds(Step, workflow_run=IDS, name=NAMES, wildcards=TEXT, attempt=st.integers(1, 9))
SPECS = st.builds(
    StepSpec,
    tiers=st.lists(st.builds(Tier, name=NAMES, energy_ratio=RATIOS), max_size=3).map(tuple),
    energy_microjoules=st.none() | st.integers(0, 10**15),
    phase=st.none() | st.sampled_from(["data", "training"]),
    checkpoint=st.none() | NAMES,
    quality_metric=st.none() | NAMES,
)
TERMS = st.builds(
    Term,
    budget=NAMES,
    account=NAMES,
    unit=st.sampled_from(Unit),
    period=NAMES,
    limit=st.integers(0, 10**18),
    mode=st.sampled_from(Mode),
    alerts=st.lists(
        st.builds(AlertRule, at_ratio=RATIOS, of_committed=st.booleans(), to=st.lists(NAMES, max_size=2).map(tuple)),
        max_size=2,
    ).map(tuple),
)
SEVERAL_TERMS = st.lists(TERMS, max_size=3).map(tuple)
HOLDS = st.builds(
    Hold,
    hold_id=IDS,
    step=STEPS,
    project=NAMES,
    user=NAMES,
    spec=SPECS,
    tier=st.none() | NAMES,
    decision=st.sampled_from(Action),
    would_decision=st.sampled_from(Action),
    amounts=AMOUNTS,
    terms=SEVERAL_TERMS,
    owner=OWNERS,
    opened_at=TIMES,
)
REQUESTS = st.builds(
    HoldRequest,
    step=STEPS,
    project=NAMES,
    user=NAMES,
    spec=SPECS,
    estimates=st.lists(
        st.builds(Estimate, tier=st.none() | NAMES, amounts=st.none() | AMOUNTS, source=TEXT), max_size=3
    ).map(tuple),
    terms=SEVERAL_TERMS,
    requested_at=TIMES,
    waiting_since=st.none() | TIMES,
    group=st.none() | NAMES,
    hold_id=st.none() | IDS,
    walltime_seconds=st.none() | st.floats(1.0, 1e7),
)
DECISIONS = st.builds(
    Decision,
    action=st.sampled_from(Action),
    would=st.sampled_from(Action),
    tier=st.none() | NAMES,
    amounts=AMOUNTS,
    reason=TEXT,
    unit=st.none() | st.sampled_from(Unit),
    needed=st.none() | st.integers(0, 10**18),
)
LEASHES = st.builds(
    Leash,
    budget=NAMES,
    unit=st.sampled_from(Unit),
    enforce=st.sampled_from(["low", "point", "high"]),
    currency=st.none() | st.just("EUR"),
)
PLACED_STEPS = st.builds(
    PlacedStep,
    ticket_id=IDS,
    step=STEPS,
    spec=SPECS,
    decision=DECISIONS,
    hold=st.none() | HOLDS,
    late_request=st.none() | REQUESTS,
    granted=AMOUNTS,
    leashes=st.lists(LEASHES, max_size=3).map(tuple),
    grace_seconds=st.floats(0.0, 3600.0),
)
SITES = st.builds(
    Site,
    intensity=st.none()
    | st.builds(
        Intensity,
        g_per_kwh=st.floats(0, 2000),
        g_per_kwh_high=st.floats(0, 2000),
        source=TEXT,
        series=st.none()
        | st.builds(
            IntensitySeries,
            starts_at=st.just(NOON),
            step_seconds=st.integers(300, 86_400),
            g_per_kwh=st.lists(st.none() | st.floats(0, 2000), max_size=5).map(tuple),
        ),
    ),
    pue=st.floats(1.0, 3.0),
    node_overhead=st.floats(1.0, 3.0),
    price_per_kwh=st.none() | st.floats(0, 10),
    currency=st.none() | st.just("EUR"),
    embodied=st.none()
    | st.builds(
        Embodied,
        micrograms_co2e=st.integers(1, 10**13),
        lifetime_seconds=st.integers(1, 10**9),
        source=TEXT,
        share=st.sampled_from(EmbodiedShare),
    ),
)
PLACEMENTS = st.builds(
    Placement,
    placement_id=IDS,
    main=OWNERS,
    workflow_run=IDS,
    project=NAMES,
    user=NAMES,
    site=SITES,
    spool_dir=NAMES,
    acts=st.booleans(),
    enforces=st.booleans(),
    steps=st.lists(PLACED_STEPS, min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=60, deadline=None)
@given(PLACEMENTS)
def test_it_comes_out_as_it_went_in_and_needs_no_quotes_in_a_shell(placement) -> None:
    text = placement.encoded()
    assert Placement.decoded(text) == placement
    assert re.fullmatch(r"[A-Za-z0-9_=.-]+", text)
    assert is_enforced(text) is placement.enforces


def group_of(count: int) -> Placement:
    """A group as real ones are: every member has a hold under two budgets, tiers, wildcards and a sentence."""
    terms = (term("project-month"), term("carbon-year", unit=Unit.CARBON))
    steps = []
    for number in range(count):
        step = Step(workflow_run=f"{number:032x}", name=f"train_{number}", wildcards=f"model=mlp,seed={number}")
        amounts = {Unit.ENERGY: 10**12 + 7919 * number, Unit.CARBON: 10**8 + 104729 * number}
        spec = StepSpec(tiers=(Tier(name="full", energy_ratio=1.0), Tier(name="tiny", energy_ratio=0.05)))
        hold_id = base64.b16encode(zlib.crc32(str(number).encode()).to_bytes(16)).decode()
        hold = Hold(
            hold_id=hold_id,
            step=step,
            project="load-forecast",
            user="ana",
            spec=spec,
            tier="full",
            decision=Action.ADMIT,
            would_decision=Action.ADMIT,
            amounts=amounts,
            terms=terms,
            owner=OWNER,
            opened_at=NOON + timedelta(microseconds=7919 * number),
        )
        decision = Decision(
            action=Action.ADMIT,
            would=Action.ADMIT,
            tier="full",
            amounts=amounts,
            reason=f"{amounts[Unit.ENERGY]} fit into both budgets",
            estimate_source=f"maximum of {number} runs of {step.label} x 1.3",
            policy_sha256="0123456789abcdef" * 4,
        )
        steps.append(
            PlacedStep(
                ticket_id=hold_id,
                step=step,
                spec=spec,
                decision=decision,
                hold=hold,
                late_request=None,
                granted=amounts,
                leashes=tuple(Leash(budget=each.budget, unit=each.unit, enforce="low") for each in terms),
                grace_seconds=30.0,
            )
        )
    return Placement(
        placement_id="0123456789abcdef" * 2,
        main=OWNER,
        workflow_run="fedcba9876543210" * 2,
        project="load-forecast",
        user="ana",
        site=Site(),
        spool_dir="/home/ana/projects/load-forecast/.green/spool",
        acts=True,
        enforces=True,
        steps=tuple(steps),
    )


def test_a_group_of_fifty_fits_into_one_variable() -> None:
    assert len(VARIABLE) + 1 + len(group_of(50).encoded()) < ENVIRONMENT_CHARACTERS_MAX


def packed(value: object) -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(value).encode())).decode()


def fields(**changes: object) -> dict[str, object]:
    data = zlib.decompress(base64.urlsafe_b64decode(group_of(1).encoded()))
    return {**json.loads(data), **changes}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "not base64!",
        "żółć",
        "QUJD",
        group_of(1).encoded()[:-8],
        base64.urlsafe_b64encode(zlib.compress(b"\xff")).decode(),
        base64.urlsafe_b64encode(zlib.compress(b"[" * 100_000)).decode(),
        *(packed(value) for value in (None, 5, "text", [], {}, [1])),
        packed(fields(steps=None)),
        packed(fields(steps=5)),
        packed(fields(steps=[None])),
        packed(fields(steps=[{}])),
        packed(fields(main=None)),
        packed(fields(spool_dir=5)),
        packed(fields(spool_dir=None)),
        packed(fields(tier_environments=None)),
        packed(fields(tier_environments={"full": 5})),
        packed(fields(of_a_later_version=1)),
    ],
)
def test_garbage_is_told_and_says_what_to_do(text) -> None:
    with pytest.raises(SettingsError, match=r"GREEN_PLACEMENT.*install the same version"):
        Placement.decoded(text)


def test_the_environment_of_its_tier_travels_with_a_job() -> None:
    placement = replace(group_of(1), tier_environments={"full": {"EPOCHS": "5", "GREEN_POWER_CAP_WATTS": "250"}})
    assert Placement.decoded(placement.encoded()) == placement

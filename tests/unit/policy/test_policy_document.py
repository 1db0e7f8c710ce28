"""green.yaml: what loads, and what people are told about a file that does not."""

import hashlib
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.emissions.intensity import cloud_intensity
from mlflow_green.emissions.intensity_series import read_series
from mlflow_green.errors import PolicyError
from mlflow_green.policy.document import Policy, default_policy, load_policy, parse_policy, parse_step_spec
from mlflow_green.policy.values import QuietHours
from mlflow_green.records import Mode, StepSpec, Tier, Unit

COUNTRIES = ("DEU", "FRA", "GBR", "USA")

DESIGN = """\
version: 1
project: load-forecast
timezone: Europe/Paris
site: {country: FRA, pue: 1.2, price: 0.21 EUR/kWh}
budgets:
  - name: project-month
    scope: {project: load-forecast}
    limit: [5 kWh, 1.5 kgCO2e]
    period: month
    mode: hard
    reserve: p95
    unknown_step: admit
    overrun: halt
    enforce: low
    max_wait: 24h
    rules:
      - {at: 50%, of: spent, do: notify, to: [team]}
      - {at: 80%, of: committed, do: downgrade}
      - {at: 100%, of: committed, do: wait, for: 1h, then: refuse}
      - {at: 105%, of: spent, do: halt, grace: 45s}
    override: {approvers: ["user:lead"], max_extra: 20%, expires: 72h, reason: required}
steps:
  train: {tiers: "full:1,half:0.5", energy: 5 Wh, phase: training, quality: {metric: mape, goal: min}}
channels:
  team: {webhook: "env:TEAM_HOOK_URL", secret: "env:TEAM_HOOK_SECRET", quiet: 1h}
"""

SMALL_TEAM = """\
version: 1
project: vision
timezone: Europe/Paris
site: {country: FRA}
budgets:
  - name: vision-month
    scope: {project: vision}
    limit: [120 kWh, 30 kgCO2e]
    period: month
    mode: observe
    rules:
      - {at: 50%, of: spent, do: notify, to: [team]}
      - {at: 80%, of: committed, do: notify, to: [team]}
      - {at: 100%, of: forecast, do: notify, to: [team]}
      - {at: 100%, of: committed, do: wait}
channels:
  team:
    apprise: ["env:TEAM_SLACK_URL"]
    quiet: 4h
"""

LAB = """\
version: 1
project: genomics
timezone: Europe/Berlin
site: {carbon_intensity: 363 g/kWh, source: "national grid mean, 2024", node_overhead: 1.1}
budgets:
  - name: lab-year
    scope: {org: lab}
    limit: [40 MWh, 12 tCO2e]
    period: year
    mode: hard
    rules:
      - {at: 80%, of: spent, do: notify, to: [leads]}
      - {at: 100%, of: forecast, do: notify, to: [leads]}
  - name: genomics-month
    scope: {org: lab, project: genomics}
    limit: [1_500 kWh, 450 kgCO2e]
    period: month
    mode: hard
    reserve: p95
    rules:
      - {at: 50%, of: spent, do: notify, to: [genomics]}
      - {at: 80%, of: committed, do: downgrade}
      - {at: 95%, of: committed, do: wait}
      - {at: 105%, of: spent, do: halt, grace: 10m}
    override: {approvers: ["group:lab-leads"], max_extra: 20%, expires: 72h, reason: required}
  - name: each-user-week
    scope: {org: lab, project: genomics, user: "*"}
    limit: 200 kWh
    period: week
    mode: soft
    rules:
      - {at: 100%, of: committed, do: wait}
steps:
  align: {tiers: "full:1,low-power:0.6", energy: 2 kWh}
channels:
  leads: {email: [leads@lab.example], digest: 7d}
  genomics:
    apprise: ["env:GENOMICS_MATTERMOST"]
    quiet: 2h
"""

PLATFORM = """\
version: 1
project: ranking
timezone: UTC
site: {country: USA, pue: 1.4, price: 0.12 EUR/kWh}
tracking: none
budgets:
  - name: acme/quarter
    scope: {org: acme}
    limit: [18_000 EUR, 6 tCO2e]
    period: quarter
    mode: soft
    rules:
      - {at: 90%, of: forecast, do: notify, to: [finops]}
  - name: acme/ranking/month
    scope: {org: acme, project: ranking}
    limit: [900 EUR, 260 kgCO2e, 900 kWh]
    period: month
    mode: hard
    reserve: max
    unknown_step: refuse
    rules:
      - {at: 70%, of: committed, do: downgrade}
      - {at: 90%, of: committed, do: refuse}
      - {at: 100%, of: spent, do: halt, grace: 5m}
    override: {approvers: ["user:ana", "user:ben"], max_extra: 10%, expires: 24h}
channels:
  finops: {email: [finops@acme.example], digest: 1d}
  ranking: {webhook: "https://hooks.acme.example/green", secret: "env:GREEN_HOOK_SECRET", quiet: 30m}
"""


def load(text: str | bytes) -> Policy:
    look_up = {"cloud": cloud_intensity, "intensity_series": lambda name: read_series(Path(name))}
    raw = text.encode() if isinstance(text, str) else text
    return parse_policy(raw, known_countries=COUNTRIES, look_up=look_up)


def problems(text: str | bytes) -> tuple[str, ...]:
    with pytest.raises(PolicyError) as caught:
        load(text)
    return caught.value.problems


@pytest.mark.parametrize("text", [DESIGN, SMALL_TEAM, LAB, PLATFORM], ids=["design", "small team", "lab", "platform"])
def test_the_examples_of_the_documentation_load(text):
    assert load(text).version == 1


def test_every_key_of_the_design_example_is_read():
    policy = load(DESIGN)
    budget = policy.budget("project-month")
    assert [(limit.unit, limit.amount) for limit in budget.limit] == [
        (Unit.ENERGY, 5 * 3_600_000 * 1_000_000),
        (Unit.CARBON, 1_500 * 1_000_000),
    ]
    assert (budget.mode, budget.max_wait_seconds) == (Mode.HARD, 86_400)
    assert [rule.for_seconds for rule in budget.rules] == [None, None, 3_600, None]
    assert budget.rules[3].grace_seconds == 45
    assert budget.rules[1].threshold(1_000) == 800
    assert policy.site.price.per_kwh == 0.21
    assert policy.steps == {
        "train": StepSpec(
            tiers=(Tier(name="full", energy_ratio=1.0), Tier(name="half", energy_ratio=0.5)),
            energy_microjoules=5 * 3_600 * 1_000_000,
            phase="training",
            quality_metric="mape",
        )
    }
    assert policy.sha256 == hashlib.sha256(DESIGN.encode()).hexdigest()


def test_what_is_not_said_has_the_documented_default():
    policy = load("version: 1\nproject: x\nbudgets: [{name: a, limit: 1 kWh, period: day}]\n")
    budget = policy.budgets[0]
    assert (budget.mode, budget.reserve, budget.unknown_step, budget.overrun, budget.enforce) == (
        "observe", "p95", "admit", "halt", "low",
    )  # fmt: skip
    assert (policy.timezone, policy.tracking.jobs, policy.site.pue, policy.site.country) == (
        "UTC",
        "notable",
        1.0,
        None,
    )


def test_tracking_has_a_short_form():
    assert load(PLATFORM).tracking.jobs == "none"


def test_the_default_policy_limits_nothing():
    policy = default_policy("my-folder")
    assert (policy.project, policy.budgets, len(policy.sha256)) == ("my-folder", (), 64)


def test_an_unknown_budget_name_raises_rather_than_passing_for_unlimited():
    with pytest.raises(KeyError, match="no budget 'gone'"):
        default_policy().budget("gone")


TEN_LINES = """\
version: 1
project: vision
budgets:
  - name: month
    limit: 50 kWh
    period: month
    mode: hard
    rules: [{at: 80%, do: notify, to: team}]
    override: {approvers: "user:ana", max_extra: 20%}
channels: {team: {email: ana@lab.example}}
"""


def test_a_budget_with_an_alert_and_an_override_fits_ten_lines_and_is_the_one_of_the_documentation():
    policy = load(TEN_LINES)
    assert len(TEN_LINES.splitlines()) == 10
    assert policy.budgets[0].override.approvers == ("user:ana",)
    assert policy.budgets[0].rules[0].to == ("team",)
    assert policy.channels["team"].email == ("ana@lab.example",)
    assert TEN_LINES in (Path(__file__).parents[3] / "docs" / "reference" / "policy.md").read_text()


GROWN = """\
version: 1
project: vision
timezone: Europe/Paris
budgets:
  - name: month
    limit: 50 kWh
    period: month
    mode: hard
    rollover: {unused: 25%, cap: 50%, overspend: forgive}
    ledger_down: wait
  - {name: lab, limit: 1 MWh, period: year, rollover: {unused: 10%}}
tiers:
  low-power: {note: half the epochs, env: {EPOCHS: "5"}, power_cap: 250 W}
  plain: {}
steps:
  train: {tiers: "full:1,low-power:0.6"}
channels:
  team: {apprise: "env:TEAM_URL", digest: 1d, quiet_hours: 22:00-07:00}
"""


def test_a_team_that_grew_has_rollover_tiers_and_quiet_hours():
    policy = load(GROWN)
    month, lab = policy.budgets
    assert (month.rollover.unused, month.rollover.cap, month.rollover.overspend) == (
        Decimal("0.25"),
        Decimal("0.5"),
        "forgive",
    )
    assert (lab.rollover.cap, lab.rollover.overspend) == (1, "carry")
    assert policy.tier_environments == {"low-power": {"EPOCHS": "5", "GREEN_POWER_CAP_WATTS": "250"}, "plain": {}}
    assert policy.channels["team"].quiet_hours == QuietHours(starts_at=time(22), ends_at=time(7))
    assert policy.channels["team"].digest_seconds == 86_400


def test_tiers_whose_names_are_nearly_alike_are_told_apart():
    policy = load(HEAD + 'tiers: {a1: {}, a-1: {}}\nsteps: {t: {tiers: "a1:1,a-1:0.5"}}\n')
    assert list(policy.tiers) == ["a1", "a-1"]


def test_a_power_cap_only_lowers_what_a_step_may_draw():
    policy = load(GROWN)
    assert policy.power_watts_max("low-power", 700.0) == 250.0
    assert policy.power_watts_max("low-power", 100.0) == 100.0
    assert [policy.power_watts_max(tier, 700.0) for tier in ("plain", "full", None)] == [700.0] * 3


@pytest.mark.parametrize(
    ("mode", "said", "answer"),
    [
        ("hard", "", "refuse"),
        ("soft", "", "admit"),
        ("observe", "", "admit"),
        ("hard", ", ledger_down: wait", "wait"),
        ("hard", ", ledger_down: admit", "admit"),
        ("soft", ", ledger_down: refuse", "refuse"),
    ],
)
def test_without_a_ledger_a_hard_budget_is_closed_unless_it_says_otherwise(mode, said, answer):
    policy = load(HEAD + f"budgets: [{{name: a, limit: 1 kWh, period: day, mode: {mode}{said}}}]\n")
    assert policy.budgets[0].without_ledger == answer


CLOCKS_GO_BACK = datetime(2026, 10, 25, 1, tzinfo=UTC)


@given(
    st.integers(0, 24 * 60 - 1),
    st.integers(1, 24 * 60 - 1),
    st.timedeltas(timedelta(hours=-6), timedelta(hours=6)) | st.timedeltas(timedelta(-9_000), timedelta(3_000)),
    st.sampled_from(["UTC", "Europe/Paris", "America/Havana", "Asia/Kathmandu"]),
)
def test_quiet_hours_end_later_the_same_day_or_the_next_and_never_before_now(start, length, since, zone_name):
    zone, moment = ZoneInfo(zone_name), CLOCKS_GO_BACK + since
    starts_at, ends_at = (time(minute // 60 % 24, minute % 60) for minute in (start, start + length))
    here = moment.astimezone(zone).time()
    inside = starts_at <= here < ends_at if starts_at < ends_at else here >= starts_at or here < ends_at
    end = QuietHours(starts_at=starts_at, ends_at=ends_at).end_after(moment, zone)
    assert (end is not None) == inside
    if end is not None:
        assert moment < end <= moment + timedelta(hours=25)


# --- broken files: what the corpus in ``broken`` cannot hold ------------------------------------------------------

HEAD = "version: 1\nproject: x\n"

NO_TEXT = {
    "empty": ("", "1:1", "the file is empty"),
    "only a comment": ("# later\n", "1:1", "the file is empty"),
    "binary": (b"version: 1\n\x80\x81", "2:1", "not UTF-8 text"),
    "zero bytes": (b"PK\x00\x00", "1:3", "not UTF-8 text"),
    "deep nesting": ("a: " + "[" * 5_000, "1:1", "nested too deeply"),
    "no mapping": ("- version: 1\n", "1:1", "a policy is a mapping"),
}


@pytest.mark.parametrize(("text", "place", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_hardly_a_policy_is_one_problem(text, place, message):
    (found,) = problems(text)
    assert found.startswith(f"green.yaml:{place}: error: ")
    assert message in found


def test_a_series_that_is_not_there_is_told_with_its_path():
    (found,) = problems(HEAD + "site: {source: s, intensity_series: absent.csv}\n")
    assert found.startswith("green.yaml:3:37: error: ")
    assert "absent.csv cannot be read: No such file" in found


def test_a_site_may_name_a_cloud_region_and_what_making_a_node_emitted():
    site = load(
        HEAD + "site: {cloud: 'gcp:europe-west9', embodied: {carbon: 1300 kgCO2e, lifetime: 5 years, source: s}}\n"
    ).site
    assert site.cloud == "gcp:europe-west9"
    assert site.embodied.carbon_micrograms == 1_300_000_000_000
    assert site.embodied.lifetime_seconds == 5 * 31_557_600
    assert site.embodied.share == "cores"


def test_an_unknown_region_is_told_with_its_place_and_the_nearest_known_ones():
    found = problems(HEAD + "site: {cloud: 'aws:eu-west3'}\n")[0]
    assert found.startswith("green.yaml:3:15: error: site.cloud: no carbon intensity for cloud region 'aws:eu-west3'")
    assert "did you mean aws:eu-west-3 or" in found


def test_a_problem_is_followed_by_its_line_and_a_caret():
    assert problems(HEAD + "site: {pui: 1.2}\n") == (
        "green.yaml:3:8: error: site.pui: unknown key 'pui'; did you mean 'pue'?\n    site: {pui: 1.2}\n           ^",
    )


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(PolicyError, match=r"absent\.yaml: error: cannot be read"):
        load_policy(Path("/nowhere/absent.yaml"))


def test_without_a_list_of_countries_only_the_form_is_checked():
    assert parse_policy((HEAD + "site: {country: XYZ}\n").encode()).site.country == "XYZ"


def test_many_aliases_of_aliases_do_not_blow_up():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    assert any("too large" in problem for problem in problems("\n".join(lines)))


# --- what a rule says about itself ------------------------------------------------------------------------


def test_a_rule_declares_its_step_as_a_dict():
    spec = parse_step_spec({"tiers": "full:1,half:0.5", "energy": "5 Wh", "phase": "training", "checkpoint": "ckpt/a"})
    assert [tier.name for tier in spec.tiers] == ["full", "half"]
    assert (spec.energy_microjoules, spec.checkpoint) == (18_000_000_000, "ckpt/a")


def test_a_wrong_declaration_names_every_problem_and_its_rule():
    with pytest.raises(PolicyError) as caught:
        parse_step_spec({"tier": "x", "energy": 5}, where="rule train: params: green")
    assert sorted(caught.value.problems) == [
        "rule train: params: green: energy: 5 has no unit; write e.g. '5 Wh'",
        "rule train: params: green: tier: unknown key 'tier'; did you mean 'tiers'?",
    ]


def test_a_declaration_that_is_no_dict_is_refused_in_words():
    with pytest.raises(PolicyError, match="is not a dict"):
        parse_step_spec("full:1")


@pytest.mark.parametrize(
    "channel",
    [
        '{webhook: "https://user:hunter2@host/x?token=hunter2"}',
        '{webhook: "http://host/hunter2"}',
        '{webhook: "https://hooks.example/hunter2", quiet: 30}',
        "{quiet: 30, webhook: ['https://hooks.example/hunter2']}",
        "{webook: 'https://hooks.example/hunter2'}",
        "{webhook: 'https://hooks.example/x', secret: hunter2}",
        "{webhook: 'https://hooks.example/x', secret: 'hunter2' 'hunter2'}",
        "{apprise: 'slack://hunter2/hunter2'}",
        "{apprise: ['env:A', hunter2]}",
        "\n    apprise:\n      - hunter2",
        "{webhook: 'https://hooks.example/x', secret: [hunter2]}",
    ],
)
def test_a_value_that_may_be_a_secret_is_never_shown(channel):
    text = f"version: 1\nproject: demo\nchannels:\n  team: {channel}\n"
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode())
    assert "hunter2" not in str(caught.value)
    assert "green.yaml:" in str(caught.value)


@pytest.mark.parametrize("before", [0, 1, 30, 200])
@pytest.mark.parametrize("after", [0, 1, 30, 200])
def test_of_a_long_line_the_part_around_the_caret_is_shown(before, after):
    right = [f"s{n}: {{energy: 1 Wh}}" for n in range(before + after)]
    steps = ", ".join([*right[:before], "wrong: {enrgy: 1 Wh}", *right[before:]])
    text = f"version: 1\nproject: demo\nsteps: {{{steps}}}\n"
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode())
    _, line, caret = caught.value.problems[0].splitlines()
    column = int(caught.value.problems[0].split(":")[2]) - 1
    assert max(map(len, (line, caret))) <= 80
    assert line[caret.index("^") :].startswith("enrgy")
    assert text.splitlines()[2][column:].startswith("enrgy")


def test_a_caret_at_the_end_of_a_long_line_is_shown_too():
    text = f"version: 1\nproject: demo  {'# much ' * 30}\nbudgets: [{{name: a, limit: 1 Wh, period: dy {' ' * 100}}}]\n"
    with pytest.raises(PolicyError) as caught:
        parse_policy(text.encode())
    _, line, caret = caught.value.problems[0].splitlines()
    assert line[caret.index("^") :].startswith("dy")

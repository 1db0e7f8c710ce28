"""green.yaml: what loads, and what people are told about a file that does not."""

import hashlib
from pathlib import Path

import pytest

from mlflow_green.emissions.intensity import cloud_intensity
from mlflow_green.emissions.intensity_series import read_series
from mlflow_green.errors import PolicyError
from mlflow_green.policy.document import Policy, default_policy, load_policy, parse_policy, parse_step_spec
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


# --- broken files: each with the place of the caret, a part of the message, and the suggestion -------------------

HEAD = "version: 1\nproject: x\n"
SITE = "site: {country: FRA, price: 0.2 EUR/kWh}\n"


def budget(body: str, site: str = "") -> str:
    """A policy with one budget; ``body`` starts in line 6 (7 with a site), column 5."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{HEAD}{site}budgets:\n  - name: a\n{lines}"


BROKEN = {
    "unknown top key": (HEAD + "budget: []\n", "3:1", "unknown key 'budget'", "budgets"),
    "unknown key": (budget("limits: 5 kWh\nlimit: 5 kWh\nperiod: day"), "5:5", "unknown key 'limits'", "limit"),
    "unknown rule key": (budget("limit: 5 kWh\nperiod: day\nrules:\n  - {at: 5%, do: wait, fro: 1h}"), "8:28", "unknown key", "for"),
    "unknown carbon unit": (budget("limit: 5 kgCO2\nperiod: day"), "5:12", "unknown unit 'kgCO2'", "kgCO2e"),
    "unit in wrong case": (budget("limit: [5 KWH]\nperiod: day"), "5:13", "unknown unit 'KWH'", "kWh"),
    "limit without unit": (budget("limit: 5\nperiod: day"), "5:12", "5 has no unit", None),
    "limit of nothing": (budget("limit: 0 kWh\nperiod: day"), "5:12", "more than 0", None),
    "two energy limits": (budget("limit: [1 kWh, 2 Wh]\nperiod: day"), "5:20", "a second energy limit", None),
    "misspelt period": (budget("limit: 5 kWh\nperiod: montly"), "6:13", "'montly' is not allowed here", "month"),
    "misspelt mode": (budget("limit: 5 kWh\nperiod: day\nmode: hrad"), "7:11", "'hrad' is not allowed", "hard"),
    "old word hold": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 9%, do: hold}]"), "7:26", "'hold' is not", "wait"),
    "old word deny": (budget("limit: 5 kWh\nperiod: day\nunknown_step: deny"), "7:19", "'deny' is not", "refuse"),
    "ratio for percent": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 0.8, do: wait}]"), "7:18", "0.8 is not a percentage", "80%"),
    "percent without sign": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 80, do: wait}]"), "7:18", "80 is not a percentage", "80%"),
    "percent of nothing": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 0%, do: wait}]"), "7:18", "out of range", None),
    "duplicate budget": (budget("limit: 5 kWh\nperiod: day") + "  - {name: a, limit: 1 Wh, period: day}\n", "7:12", "here twice", None),
    "unknown channel": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 9%, do: notify, to: [teem]}]") + "channels: {team: {email: a@b.c}}\n", "7:39", "unknown channel 'teem'", "team"),
    "no channels at all": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 9%, do: notify, to: teem}]"), "7:38", "no 'channels:' section", None),
    "halt before wait": (budget("limit: 5 kWh\nperiod: day\nmode: hard\nrules:\n  - {at: 95%, do: wait}\n  - {at: 90%, do: halt}"), "10:14", "halt at 90% comes before wait at 95%", None),
    "halt before the limit": (budget("limit: 5 kWh\nperiod: day\nmode: hard\nrules: [{at: 90%, do: halt}]"), "8:18", "comes before the limit at 100%", None),
    "halt that cannot fire": (budget("limit: 5 kWh\nperiod: day\nmode: soft\nrules: [{at: 100%, do: halt}]"), "8:28", "'halt' can never fire: budget mode is 'soft'", None),
    "forecast halts": (budget("limit: 5 kWh\nperiod: day\nmode: hard\nrules: [{at: 100%, of: forecast, do: halt}]"), "8:28", "a forecast must not halt", None),
    "forecast waits": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 100%, of: forecast, do: wait}]"), "7:28", "a forecast may only notify", None),
    "halt of committed": (budget("limit: 5 kWh\nperiod: day\nmode: hard\nrules: [{at: 100%, of: committed, do: halt}]"), "8:28", "write 'of: spent'", None),
    "grace without halt": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 9%, do: wait, grace: 5s}]"), "7:32", "'grace' belongs to 'do: halt'", None),
    "notify nobody": (budget("limit: 5 kWh\nperiod: day\nrules: [{at: 9%, do: notify}]"), "7:13", "'to' is missing", None),
    "carbon without a place": (budget("limit: [1 kWh, 5 kgCO2e]\nperiod: day"), "5:20", "needs the carbon intensity", None),
    "money without a price": (budget("limit: 20 EUR\nperiod: day"), "5:12", "needs the price of electricity", None),
    "money in two currencies": (budget("limit: 20 USD\nperiod: day", SITE), "6:12", "the limit is in USD", None),
    "period missing": (budget("limit: 5 kWh"), "4:5", "'period' is missing", None),
    "unknown time zone": (HEAD + "timezone: Paris\n", "3:11", "unknown time zone 'Paris'", "Europe/Paris"),
    "misspelt time zone": (HEAD + "timezone: Europe/Pari\n", "3:11", "unknown time zone", "Europe/Paris"),
    "unknown country": (HEAD + "site: {country: FRN}\n", "3:17", "no carbon intensity is known for country 'FRN'", "FRA"),
    "two-letter country": (HEAD + "site: {country: DE}\n", "3:17", "write three capitals", "DEU"),
    "country by name": (HEAD + "site: {country: France}\n", "3:17", "country 'France'", "FRA"),
    "intensity without source": (HEAD + "site: {carbon_intensity: 56 g/kWh}\n", "3:8", "say where the number comes from", None),
    "intensity in wrong unit": (HEAD + "site: {carbon_intensity: 56 g, source: s}\n", "3:26", "unknown unit 'g'", None),
    "two places": (HEAD + "site: {country: FRA, cloud: 'aws:eu-west-3'}\n", "3:22", "a site has one place, and 'country' names it already", None),
    "two intensities": (HEAD + "site: {carbon_intensity: 5 g/kWh, source: s, intensity_series: a.csv}\n", "3:46", "'carbon_intensity' names it already", None),
    "series without source": (HEAD + "site: {intensity_series: a.csv}\n", "3:8", "say where the number comes from", None),
    "series that is not there": (HEAD + "site: {source: s, intensity_series: absent.csv}\n", "3:37", "absent.csv cannot be read: No such file", None),
    "embodied without lifetime": (HEAD + "site: {embodied: {carbon: 5 kgCO2e, source: s}}\n", "3:8", "'lifetime' is missing; write e.g. 'lifetime: 5 years'", None),
    "embodied without source": (HEAD + "site: {embodied: {carbon: 5 kgCO2e, lifetime: 5 years}}\n", "3:8", "'source' is missing; say where", None),
    "embodied in wrong unit": (HEAD + "site: {embodied: {carbon: 5 kg, lifetime: 5 years, source: s}}\n", "3:27", "unknown carbon unit 'kg'", None),
    "embodied of nothing": (HEAD + "site: {embodied: {carbon: 0 kgCO2e, lifetime: 5 years, source: s}}\n", "3:27", "must be more than 0", None),
    "lifetime without unit": (HEAD + "site: {embodied: {carbon: 5 kgCO2e, lifetime: 5, source: s}}\n", "3:47", "5 has no unit; write e.g. '5 years'", None),
    "misspelt share": (HEAD + "site: {embodied: {carbon: 5 kgCO2e, lifetime: 5 y, share: core, source: s}}\n", "3:59", "'core' is not allowed here; write one of cores, node", "cores"),
    "pue below one": (HEAD + "site: {pue: 0.9}\n", "3:13", "greater than or equal to 1", None),
    "price without unit": (HEAD + "site: {price: 0.21}\n", "3:15", "0.21 has no unit", None),
    "misspelt tracking": (HEAD + "tracking: nono\n", "3:11", "'nono' is not allowed", "none"),
    "tiers not in quotes": (HEAD + "steps:\n  t: {tiers: full:1,half:0.5}\n", "4:21", "put the tiers in quotes", None),
    "tiers get dearer": (HEAD + "steps:\n  t: {tiers: 'full:1,half:0.5,x:0.7'}\n", "4:14", "do not get cheaper", None),
    "dearest is not one": (HEAD + "steps:\n  t: {tiers: 'full:0.9'}\n", "4:14", "its ratio is 1, not 0.9", None),
    "tier of nothing": (HEAD + "steps:\n  t: {tiers: 'full:1,half:0'}\n", "4:14", "'0', not a number in (0, 1]", None),
    "tier without ratio": (HEAD + "steps:\n  t: {tiers: 'full:1,half'}\n", "4:14", "'half' is not 'name:ratio'", None),
    "misspelt phase": (HEAD + "steps:\n  t: {phase: trainning}\n", "4:14", "'trainning' is not", "training"),
    "misspelt energy unit": (HEAD + "steps:\n  t: {energy: 5 wh}\n", "4:15", "unknown energy unit 'wh'", "Wh"),
    "secret in the file": (HEAD + "channels:\n  t: {webhook: 'env:A', secret: hunter2}\n", "4:33", "a secret does not belong in a file", None),
    "channel to nowhere": (HEAD + "channels:\n  t: {quiet: 1h}\n", "4:3", "leads nowhere", None),
    "approver without kind": (budget("limit: 1 Wh\nperiod: day\noverride: {approvers: [ana], max_extra: 5%}"), "7:28", "'ana' is not an approver", None),
    "newer version": ("version: 2\nproject: x\n", "1:10", "this mlflow-green reads 'version: 1'", None),
    "no version": ("project: x\n", "1:1", "'version' is missing", None),
    "number for a name": ("version: 1\nproject: 2026\n", "2:10", "2026 must be text; put it in quotes", None),
    "no value": (HEAD + "channels:\n  t:\n", "4:3", "has no value", None),
    "mapping for a list": (budget("limit: 5 kWh\nperiod: day\nrules: {at: 5%}"), "7:12", "must be a list", None),
    "list for a mapping": ("- version: 1\n", "1:1", "a policy is a mapping", None),
    "duplicate key": (HEAD + "project: y\n", "3:1", "key 'project' is here twice; the first is in line 2", None),
    "tab": ("version: 1\nsite:\n\tpue: 1\n", "3:1", "a tab cannot indent YAML", None),
    "open bracket": (HEAD + "site: {pue: 1\n", "4:1", "not valid YAML", None),
    "two colons": (HEAD + "site: pue: 1\n", "3:10", "a second ':' in one line", None),
    "two documents": ("version: 1\n---\nversion: 1\n", "2:1", "more than one YAML document", None),
    "empty": ("", "1:1", "the file is empty", None),
    "only a comment": ("# later\n", "1:1", "the file is empty", None),
    "binary": (b"version: 1\n\x80\x81", "2:1", "not UTF-8 text", None),
    "zero bytes": (b"PK\x00\x00", "1:3", "not UTF-8 text", None),
    "deep nesting": ("a: " + "[" * 5_000, "1:1", "nested too deeply", None),
    "tag": (HEAD + "site: !!python/name:os.system {}\n", "3:7", "is not allowed", None),
}  # fmt: skip


@pytest.mark.parametrize(("text", "place", "message", "suggestion"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_shown_with_its_place_and_a_suggestion(text, place, message, suggestion):
    found = [problem for problem in problems(text) if message in problem]
    assert found, problems(text)
    assert found[0].startswith(f"green.yaml:{place}: error: ")
    meant = f"did you mean '{suggestion}'?"
    assert (meant in found[0]) if suggestion else ("did you mean" not in found[0])


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


def test_all_problems_come_in_one_pass_in_the_order_of_the_file():
    text = budget(
        "limit: 5 kgCO2\nperiod: montly\nmode: soft\nrules:\n  - {at: 0.8, do: hold}\n  - {at: 100%, do: halt}"
    )
    text += "channels: {t: {secret: x}}\nproject: again\n"
    places = [problem.split(": error")[0] for problem in problems(text)]
    assert places == [
        f"green.yaml:{place}" for place in ("5:12", "6:13", "9:14", "9:23", "10:24", "11:12", "11:16", "11:24", "12:1")
    ]


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

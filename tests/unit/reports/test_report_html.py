import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_green.records import Unit
from mlflow_green.reports.charts import Level, budget_chart, pareto_chart
from mlflow_green.reports.html import render_report
from mlflow_green.reports.totals import Variant, metric_goal, variants, windows_of
from tests.testkit.report_samples import (
    START,
    WH,
    ToldBooks,
    entry,
    estimated,
    hold_id,
    pipeline_books,
    pipeline_entries,
    pipeline_facts,
    pipeline_windows,
)


class Text(HTMLParser):
    """The text of a page, and its elements that stay open."""

    void = ("meta", "link", "br", "path", "circle")

    def __init__(self, page):
        super().__init__()
        self.words, self.open, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page(books=None, **how):
    return render_report(books or pipeline_books(), now=START, **how)


def test_the_page_is_well_formed_and_loads_nothing():
    html = page()
    parsed = Text(html)
    assert parsed.open == []
    addresses = [value for name, value in parsed.attributes if name in {"src", "href"}]
    assert addresses == ["data:,"]
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html


def test_a_rule_says_how_its_jobs_were_answered():
    assert "train 1 of 8 would be downgraded, 1 of 8 downgraded to half" in Text(page()).text


def test_room_that_running_jobs_wait_for_stands_beside_what_is_held():
    books = pipeline_books()
    assert "Pending" not in page(books)
    first, *others = books.told_balances
    text = Text(page(replace(books, told_balances=(replace(first, pending=WH // 4), *others)))).text
    assert "Held Pending Available" in text
    assert "250 mWh" in text


def test_the_headline_says_energy_with_interval_method_and_carbon_with_source():
    text = Text(page()).text
    assert "380 mWh [127, 1139], estimated" in text
    assert "25.5 mgCO2e at 56 g/kWh; Ember via codecarbon, FRA 2023, CC BY 4.0" in text
    assert "65.0 mWh 17% of all: 1 refused, 1 halted, 1 failed, 1 lost" in text


def test_the_headline_says_what_the_numbers_are_like_and_where_that_is_from():
    text = Text(page()).text
    assert "The energy is about that of 2.28 min of an LED lamp that draws 10 W;" in text
    assert "0.236 m in an average new car (mean of new cars registered in Europe in 2022, WLTP, European Env" in text
    unknown = entry("train", operational_micrograms_co2e=None, intensity_source=None, carbon_intensity_g_per_kwh=None)
    assert "average new car" not in Text(page(ToldBooks(told_entries=[unknown]))).text
    assert "LED" not in Text(page(ToldBooks(told_entries=[]))).text


def test_unknown_carbon_is_said_to_be_unknown():
    item = entry("train", operational_micrograms_co2e=None, intensity_source=None, carbon_intensity_g_per_kwh=None)
    text = Text(page(ToldBooks(told_entries=[item]))).text
    assert "Carbon not known no carbon intensity is known: set site.country in green.yaml" in text


def test_embodied_carbon_stands_beside_operational_where_it_is_known():
    item = entry("train", embodied_micrograms_co2e=2_500_000)
    assert "Carbon, embodied 2.50 gCO2e" in Text(page(ToldBooks(told_entries=[item]))).text
    assert "embodied" not in Text(page()).text


def test_many_intensities_are_told_as_a_range():
    items = [entry("train", minute=hour, carbon_intensity_g_per_kwh=50.0 + hour) for hour in range(5)]
    assert "at 50 to 54 g/kWh" in Text(page(ToldBooks(told_entries=items))).text


def test_many_sources_are_told_as_a_number():
    items = [entry("train", minute=day, intensity_source=f"forecast of day {day}") for day in range(5)]
    text = Text(page(ToldBooks(told_entries=items))).text
    assert "forecast of day 2; and 2 more sources" in text
    assert "forecast of day 3" not in text


def test_cost_stands_in_its_currency_where_it_is_known():
    item = entry("train", cost_micro_units=2_500_000, currency="EUR")
    assert "Cost 2.50 EUR" in Text(page(ToldBooks(told_entries=[item]))).text
    assert "Cost" not in Text(page()).text


def test_decisions_are_listed_with_their_reasons_word_for_word():
    text = Text(page()).text
    for item in pipeline_entries():
        if item.reason:
            assert item.reason in text
    assert "waited (3 times asked) waits for train[model=ridge] to settle" in text
    assert "would have been downgraded" in text


def test_what_users_wrote_is_escaped():
    hostile = "<img src=x onerror=alert(1)>\"'&"
    item = entry(hostile, f"model={hostile}", reason=hostile, intensity_source=hostile)
    html = page(
        ToldBooks(
            told_entries=[item],
            told_facts={hold_id(hostile, f"model={hostile}"): {f"quality/{hostile}": 1.0}},
            told_balances=[replace(pipeline_books().balances()[0], spent=1)],
            told_journal=pipeline_books().journal(),
        )
    )
    assert "<img" not in html
    assert hostile in Text(html).text


def test_an_empty_ledger_gives_a_friendly_page():
    text = Text(page(ToldBooks())).text
    assert "Nothing has been recorded yet" in text
    assert "snakemake --scheduler green" in text


def test_one_workflow_run_is_reported_without_the_others():
    text = Text(page(workflow_run="run-1")).text
    assert "in 1 workflow run" in text
    assert "sweep" not in text


def test_a_budget_that_was_not_used_in_time_is_still_listed():
    books = replace(pipeline_books(), told_journal=())
    assert "518 mWh" in Text(page(books)).text


def test_a_declared_goal_turns_the_front_around():
    books = pipeline_books()
    assert "MAPE (lower is better)" in Text(page(books)).text
    assert "MAPE (higher is better)" in Text(page(books, goals={"mape": "max"})).text


@pytest.mark.parametrize(
    ("metric", "goal"), [("mape", "min"), ("val_accuracy", "max"), ("f1_macro", "max"), ("loss", "min")]
)
def test_the_name_of_a_metric_says_which_way_is_better(metric, goal):
    assert metric_goal(f"quality/{metric}") == goal


def test_a_variant_has_the_energy_of_all_jobs_with_its_wildcards():
    jobs = [entry("train", "model=a", energy=WH, minute=0), entry("evaluate", "model=a", energy=WH, minute=1)]
    found = variants(jobs, {hold_id("evaluate", "model=a"): {"quality/mape": 3.0}}, "quality/mape")
    assert [(v.label, v.metric, v.energy.microjoules) for v in found] == [("a", 3.0, 2 * WH)]


def test_only_windows_of_the_same_sampler_and_time_belong_to_the_jobs():
    window = pipeline_windows()[0]
    late = replace(window, started_at=START + timedelta(days=1), ended_at=START + timedelta(days=1, seconds=9))
    foreign = replace(window, sampler_id="sampler-2")
    assert windows_of(pipeline_entries(), [window, late, foreign]) == (window,)


amounts = st.integers(0, 10**15)
levels = st.lists(st.tuples(st.integers(0, 10**7), amounts, amounts), min_size=1, max_size=40).map(
    lambda rows: [Level(at=START + timedelta(seconds=s), spent=a, held=b) for s, a, b in sorted(rows)]
)


@given(levels, st.sampled_from(list(Unit)), st.none() | st.integers(1, 10**15))
def test_any_history_of_a_budget_can_be_drawn_inside_its_frame(history, unit, limit):
    svg = budget_chart(history, unit, limit, width=360, title="a <title>")
    assert "nan" not in svg
    assert "&lt;title&gt;" in svg
    assert all(-1 <= float(y) <= 241 for y in re.findall(r' y="([-0-9.]+)"', svg))


variant_lists = st.lists(
    st.builds(
        Variant,
        label=st.text(max_size=12),
        workflow_run=st.just("r"),
        metric=st.floats(-1e6, 1e6),
        energy=st.integers(0, 10**13).map(estimated),
    ),
    min_size=1,
    max_size=25,
)


@given(variant_lists, st.sampled_from(["min", "max"]))
def test_any_set_of_variants_can_be_drawn_with_every_point_inside(points, goal):
    svg = pareto_chart(points, "MAPE", goal, width=960, title="t")
    places = re.findall(r'<circle class="[^"]*" cx="([-0-9.]+)" cy="([-0-9.]+)"', svg)
    assert len(places) == len(points)
    assert all(70 <= float(x) <= 945 and 0 <= float(y) <= 340 for x, y in places)


def test_facts_without_numbers_do_not_break_the_page():
    facts = {key: {**value, "quality/mape": "n/a"} for key, value in pipeline_facts().items()}
    assert "against energy" not in Text(page(replace(pipeline_books(), told_facts=facts))).text

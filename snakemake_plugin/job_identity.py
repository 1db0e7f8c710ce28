"""What a Snakemake job is to the budget: its step, and what its rule declares about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mlflow_green.records import Step

PARAM = "green"

JobKey = tuple[str, tuple[tuple[str, str], ...]]
"""Rule and wildcards: the same for every object that Snakemake makes of a job."""


def key_of(job: Any) -> JobKey:
    return job.rule.name, tuple(job.wildcards_dict.items())


def step_of(job: Any, workflow_run: str, attempt: int) -> Step:
    """The step of one attempt of a job; wildcards in the rule's own order."""
    wildcards = ",".join(f"{name}={value}" for name, value in job.wildcards_dict.items())
    return Step(workflow_run=workflow_run, name=job.rule.name, wildcards=wildcards, attempt=attempt)


def name_of(job: Any) -> str:
    """A job or a group as people know it."""
    if job.is_group():
        return "the group " + ", ".join(sorted(step_of(part, "", 1).label for part in job.jobs))
    return step_of(job, "", 1).label


def declared(job: Any) -> Mapping[str, object] | None:
    """What ``params: green=`` says, as a plain mapping; ``None`` where the rule has no such parameter.

    The raw parameter is called here, because Snakemake caches ``job.params`` with the tier of the first look.

    Raises:
        TypeError: the parameter is not a mapping, or not a function of what Snakemake gives to parameters.
    """
    value = job.rule.params.get(PARAM) if hasattr(job.rule.params, "get") else None
    if value is None:
        return None
    if callable(value):
        value = _call(value, job)
    if not isinstance(value, Mapping):
        raise TypeError(
            f"params: {PARAM}= of rule {job.rule.name} is {value!r}; write "
            f'{PARAM}=lambda wc, resources: dict(energy="5 Wh", tiers="full:1,half:0.5")'
        )
    return value


def _call(function: Callable[..., object], job: Any) -> object:
    """Call a parameter function as Snakemake does: with wildcards, and what else it names."""
    named = [name for name in inspect.signature(function).parameters if name in _AUXILIARY]
    return function(job.wildcards, **{name: getattr(job, name) for name in named})


_AUXILIARY = ("input", "output", "threads", "resources")


def metrics_output(job: Any) -> str | None:
    """The path of the output named ``metrics``, relative to the working directory."""
    path = job.output.get("metrics") if hasattr(job.output, "get") else None
    return str(path) if isinstance(path, str) else None


def input_paths(job: Any) -> tuple[str, ...]:
    """The paths of its input, relative to the working directory. No file is looked at."""
    return tuple(map(str, job.input))

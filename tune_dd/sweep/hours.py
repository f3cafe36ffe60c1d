"""How long a search takes on each kind of device, from a step measured here and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tune_dd import device
from tune_dd.console import Console
from tune_dd.loading import no_collection
from tune_dd.sweep.options import devices_and_threads
from tune_dd.sweep.plan import Plan, search_hours
from tune_dd.sweep.progress import format_seconds
from tune_dd.trial import TrialSpec

# What the devices' allocators say of a tensor that is too large for them, each in words of its own.
_TOO_LARGE = ("allocate memory", "out of memory", "no memory", "invalid buffer size", "overflow")


@dataclass(frozen=True)
class DeviceHours:
    """Hours of a search on one kind of device; None where no step can be measured here, and ``note`` says why."""

    device: str
    hours: float | None
    note: str

    def describe(self) -> str:
        if self.hours is None:
            return f"{self.device}: not measured here ({self.note})"
        return f"{self.device}: about {format_seconds(self.hours * 3600)} from a step measured now, {self.note}"


def measure_hours(
    plan: Plan, specs: tuple[TrialSpec, ...], kinds: Sequence[str], console: Console
) -> list[DeviceHours]:
    """One entry per device kind; on another kind than the plan's the search would use all there is of it."""
    found = []
    for kind in kinds:
        if reason := device.why_unusable(kind):
            found.append(DeviceHours(kind, None, reason.split(":")[0]))
            continue
        planned = plan
        if kind != plan.device:
            n_devices, n_threads = devices_and_threads(kind, None)
            planned = replace(plan, device=kind, n_devices=n_devices, n_threads=n_threads)
        try:
            hours = _measure(planned, specs, console)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in _TOO_LARGE):
                raise
            found.append(DeviceHours(kind, None, "its memory does not hold a step"))
            continue
        found.append(DeviceHours(kind, hours, f"{planned.n_devices} trial(s) at a time"))
    return found


def measure_rest(plan: Plan, specs: tuple[TrialSpec, ...], ended: set[str], console: Console) -> list[DeviceHours]:
    """Of a run that is taken up: the time of the trials that have not ended, as if each of them began anew."""
    n_later = plan.grids[-1].n_later
    rest = tuple(spec for spec in specs if spec.trial_id not in ended)
    if not n_later:
        return measure_hours(plan, rest, (plan.device,), console) if rest else []
    # Of the trials that are chosen as it goes some have ended too; all are alike.
    n_trials = plan.n_trials(specs)
    share = max(0, n_trials - len(ended)) / n_trials
    found = measure_hours(plan, specs, (plan.device,), console) if share else []
    return [replace(entry, hours=None if entry.hours is None else share * entry.hours) for entry in found]


def _measure(plan: Plan, specs: tuple[TrialSpec, ...], console: Console) -> float:
    with no_collection():
        from tune_dd.training import estimate_step_seconds

    torch_device = device.open_device(plan.device, plan.n_threads)
    last = {spec.model: spec for spec in specs}  # the largest dropout: masks cost too
    with console.status(f"measuring a step of {', '.join(m.name for m in last)} on {plan.device}"):
        seconds = {model: estimate_step_seconds(spec, torch_device) for model, spec in last.items()}
    device.free_cached_memory(torch_device)  # this process goes on beside the trials
    return search_hours(plan, specs, seconds)

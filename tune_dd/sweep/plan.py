"""The plan of a search: which trials, on what, at what cost; how it is stored and read back."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tune_dd
from search_spaces.adaptive_grid import AdaptiveGrid
from search_spaces.locked_stream import StreamGrid
from search_spaces.schedule_coefficients import ScheduleSpace
from search_spaces.space import DataIdentity, Setting, Space
from search_spaces.static_dropout import StaticGrid
from tune_dd import artifacts, kernels
from tune_dd.device import processor_name
from tune_dd.errors import UserError
from tune_dd.regime_file import pattern_below
from tune_dd.regimes import CorpusSource, ModelSpec, Protocol, Regime, Scale, evidence_class
from tune_dd.snapshots import Sharing
from tune_dd.trial import TrialSpec

ATTRIBUTION = (
    "The question, the regimes and the pressure law follow the reference study (DOI 10.5281/zenodo.20616633); "
    "the model follows nanochat (MIT, Andrej Karpathy). What the study leaves open is listed under scale.ours."
)
_LIBRARIES = ("torch", "ray", "tokenizers", "safetensors", "numpy", "pyarrow", "pandas", "scipy", "optuna")
_BYTES_PER_ROW = 1_100  # a row in a journal and in metrics.jsonl, measured on pocket runs, rounded up
# Weights and two AdamW moments in float32; a journal is written beside the one it replaces.
_JOURNAL_BYTES_PER_PARAM = 2 * 3 * 4
_TOKEN_BYTES = 2
# A forward pass against a training step, which is one forward and a backward of twice its work.
_FORWARD_SHARE = 1 / 3
_TRAIN_EVAL_TOKENS = 16_384  # of the training prefix, beside the validation windows

# The search space of each phase.
SPACES: dict[str, type[Space]] = {
    "screen": StaticGrid,
    "confirm": StaticGrid,
    "calibrate": StaticGrid,
    "stream": StreamGrid,
    "search": ScheduleSpace,
}


def read_space(phase: str, data: dict[str, Any]) -> Space:
    """The space of its ``to_dict``."""
    return (AdaptiveGrid if "target_width" in data else SPACES[phase]).from_dict(data)


@dataclass(frozen=True)
class Plan:
    """A search as it will be run. ``grids``: the spaces searched, more than one once a run was extended."""

    regime: Regime
    phase: str
    scale_name: str
    scale: Scale
    grids: tuple[Space, ...]
    device: str
    n_devices: int
    n_threads: int

    def setting(self, data: DataIdentity) -> Setting:
        return Setting(self.regime.name, self.scale_name, self.scale, data)

    def trials(self, data: DataIdentity) -> tuple[TrialSpec, ...]:
        """All trials that are known beforehand, in the order they are run."""
        return tuple(type(self.grids[-1]).trials(self.grids, self.setting(data)))

    def n_trials(self, specs: tuple[TrialSpec, ...]) -> int:
        """How many trials there will be, those among them that are suggested as the search goes."""
        return len(specs) + self.grids[-1].n_later


def plan_hash(plan: Plan, specs: tuple[TrialSpec, ...]) -> str:
    """Content hash of what will be trained, 10 hex digits: the trials, and of a space that suggests more of them all
    that decides which."""
    lines = [spec.trial_id for spec in specs]
    lines += [json.dumps(grid.to_dict(), sort_keys=True) for grid in plan.grids if grid.n_later]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:10]


def to_config(
    plan: Plan,
    specs: tuple[TrialSpec, ...],
    *,
    command: str,
    data: DataIdentity,
    cache_folder: Path,
    manifest: dict[str, Any],
    device_name: str,
    options: dict[str, Any],
    more: dict[str, Any],
) -> dict[str, Any]:
    """config.json of a new run.

    Args:
        options: what a resumed search need not be told again beside the plan.
        more: what its phase records besides.
    """
    return {
        "schema": artifacts.SCHEMA,
        "version": tune_dd.__version__,
        "created": datetime.datetime.now().isoformat(timespec="seconds"),
        "command": command,
        "run_id": f"{plan.regime.name}-{plan.phase}-{plan.scale_name}-{plan_hash(plan, specs)}",
        "plan_hash": plan_hash(plan, specs),
        "n_trials": plan.n_trials(specs),
        "regime": _regime_with_absolute_globs(plan.regime),
        "phase": plan.phase,
        "scale_name": plan.scale_name,
        "scale": asdict(plan.scale),
        "grids": [grid.to_dict() for grid in plan.grids],
        "models": _models(plan.scale, specs),
        "evidence": evidence_class(plan.scale_name, plan.device),
        "data": {**asdict(data), "cache_folder": str(cache_folder), "manifest": manifest},
        "device": {
            "name": plan.device,
            "device_name": device_name,
            "n_devices": plan.n_devices,
            "n_threads": plan.n_threads,
        },
        "options": options,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "step": step_identity(plan),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": _git_commit(),
        "attribution": ATTRIBUTION,
        **more,
    }


def step_identity(plan: Plan) -> str:
    """What a training step is computed by: ``kernels-<hash>``, the compiled step; or ``torch``."""
    compiled = plan.device == "cpu" and plan.scale.protocol.precision == "float32"
    return kernels.identity() if compiled else "torch"


def other_arithmetic(config: dict[str, Any], plan: Plan) -> list[str]:
    """In what a machine computes otherwise than where a run was begun, so that last digits may differ; in words."""
    pairs = [
        ("torch", config.get("libraries", {}).get("torch"), importlib.metadata.version("torch")),
        ("step", config.get("step"), step_identity(plan)),
    ]
    if plan.device == "cpu":
        pairs.append(("processor", config.get("device", {}).get("device_name"), processor_name()))
    return [f"{what} {before} -> {now}" for what, before, now in pairs if before is not None and before != now]


def from_config(config: dict[str, Any], where: Path) -> tuple[Plan, tuple[TrialSpec, ...]]:
    """The plan that a run's config.json holds, and its trials.

    Raises:
        UserError: the config is damaged or no longer gives the trials that the run was begun with.
    """
    try:
        regime_fields = dict(config["regime"])
        corpus = dict(regime_fields.pop("corpus"))
        scale = _scale_from_dict(config["scale"])
        regime = Regime(
            **regime_fields,
            corpus=CorpusSource(**{**corpus, "globs": tuple(corpus["globs"])}),
            scales={config["scale_name"]: scale},
        )
        plan = Plan(
            regime=regime,
            phase=config["phase"],
            scale_name=config["scale_name"],
            scale=scale,
            grids=tuple(read_space(config["phase"], grid) for grid in config["grids"]),
            device=config["device"]["name"],
            n_devices=config["device"]["n_devices"],
            n_threads=config["device"]["n_threads"],
        )
        specs = plan.trials(identity(config))
        expected = config["plan_hash"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{where / artifacts.CONFIG} is damaged ({error!r}): restore it or start a new run") from None
    if plan_hash(plan, specs) != expected:
        raise UserError(
            f"{where} was begun with another plan (hash {expected}, its config now gives {plan_hash(plan, specs)}): "
            "restore its config.json, use the version that wrote it, or start a new run"
        )
    return plan, specs


def extended(config: dict[str, Any], plan: Plan, more: Space, command: str) -> tuple[Plan, dict[str, Any]]:
    """The plan with another grid's values added on every axis, and the config that holds it.

    What the run was begun with stays: its run_id, its first grid and the trials that are done.

    Raises:
        UserError: the grid adds nothing, a prefix is longer than the encoded text, or the learning rate goes by a
            trial's end and there would be trials of other ends.
    """
    grid = plan.grids[-1].union(more)
    if grid == plan.grids[-1]:
        raise UserError(
            "--extend adds nothing: name new --seeds or --dropouts; of a grid also --prefixes, --readouts or "
            "--models, of a stream --anchors; of a search more --points"
        )
    scale = grid.on_scale(plan.scale)  # refuses what would not make a scale
    if scale.protocol.rate_schedule != "constant" and scale.readouts != plan.grids[-1].on_scale(plan.scale).readouts:
        # Seeds added later would be read out at the old C too, and at another rate than the trials that are done.
        raise UserError(
            f"--readouts: with rate_schedule {scale.protocol.rate_schedule!r} the learning rate goes by a trial's last "
            "read-out, so other read-outs are another table: start a new run for them"
        )
    encoded = int(config["data"]["manifest"]["tokens"]["train"])
    if grid.prefixes[-1] > encoded:
        raise UserError(
            f"--prefixes {grid.prefixes[-1]}: the run's text was encoded to {encoded} tokens, so a longer prefix "
            "needs a new run"
        )
    larger = replace(plan, grids=(*plan.grids, grid))
    specs = larger.trials(identity(config))
    return larger, config | {
        "grids": [g.to_dict() for g in larger.grids],
        "plan_hash": plan_hash(larger, specs),
        "n_trials": larger.n_trials(specs),
        "models": _models(larger.scale, specs),
        "extensions": [*config.get("extensions", []), command],
    }


def _regime_with_absolute_globs(regime: Regime) -> dict[str, Any]:
    """The regime without its scales; its text can be found again from any working directory."""
    data = {k: v for k, v in regime.to_dict().items() if k != "scales"}
    globs = [pattern_below(Path.cwd(), pattern) for pattern in regime.corpus.globs]
    return data | {"corpus": data["corpus"] | {"globs": globs}}


def _models(scale: Scale, specs: tuple[TrialSpec, ...]) -> list[dict[str, Any]]:
    models = sorted({spec.model for spec in specs}, key=lambda m: (m.n_params(scale.vocab_size), m.name))
    return [{"name": m.name, "n_params": m.n_params(scale.vocab_size), **asdict(m)} for m in models]


def identity(config: dict[str, Any]) -> DataIdentity:
    data = config["data"]
    return DataIdentity(data["corpus_hash"], data["tokenizer_hash"], data["validation_hash"])


def _scale_from_dict(data: dict[str, Any]) -> Scale:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    for name in ("models", "calibration_models", "screen_models"):
        fields[name] = tuple(ModelSpec(**model) for model in data.get(name, ()))
    fields["anchors"] = {name: tuple(path) for name, path in data.get("anchors", {}).items()}
    fields["protocol"] = Protocol.from_dict(data["protocol"])
    return Scale(**fields)


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


@dataclass(frozen=True)
class Cost:
    """What a search will take, whatever the speed of the device.

    ``shared_steps`` of the ``steps`` are trained once for several trials, at best: with several trials at a
    time two may go the same way side by side.
    """

    n_trials: int
    n_rows: int
    steps: int
    tokens: int
    flops: float
    disk_bytes: int
    shared_steps: int


def search_hours(plan: Plan, specs: tuple[TrialSpec, ...], step_seconds: dict[ModelSpec, float]) -> float:
    """Hours of the search, given measured seconds of one optimizer step of each model.

    Read-outs count as forward passes, and steps that trials may share count once.
    """
    read = plan.scale.eval_tokens + _TRAIN_EVAL_TOKENS
    evaluation_steps = _FORWARD_SHARE * read / plan.scale.protocol.tokens_per_step
    seconds = sum(step_seconds[spec.model] * (spec.total_steps + spec.n_readouts * evaluation_steps) for spec in specs)
    n_steps = sum(spec.total_steps for spec in specs)
    if n_steps:
        seconds *= 1 - Sharing.of(specs).shared_steps / n_steps
    return _with_later_ones(plan, specs) * seconds / plan.n_devices / 3600


def _with_later_ones(plan: Plan, specs: tuple[TrialSpec, ...]) -> float:
    """All trials over those known beforehand: the ones suggested as a search goes are as long."""
    return plan.n_trials(specs) / len(specs) if specs else 1.0


def cost(plan: Plan, specs: tuple[TrialSpec, ...], *, keep_weights: bool = False) -> Cost:
    """Add up the plan."""
    largest = max((spec.n_params for spec in specs), default=0)
    n_trials, factor = plan.n_trials(specs), _with_later_ones(plan, specs)
    n_rows = round(factor * sum(spec.n_readouts for spec in specs))
    sharing = Sharing.of(specs)
    n_steps = round(factor * sum(spec.total_steps for spec in specs))
    # A seed's snapshots are dropped as its last trial has started.
    snapshots = math.ceil(len(sharing.users) / max(1, len({spec.seed for spec in specs})))
    journals = (n_trials if keep_weights else plan.n_devices) + snapshots
    return Cost(
        n_trials=n_trials,
        n_rows=n_rows,
        steps=n_steps,
        tokens=round(factor * sum(spec.sampled_tokens(spec.total_steps) for spec in specs)),
        flops=factor
        * float(
            sum(
                spec.sampled_tokens(spec.total_steps)
                * spec.model.flops_per_token(spec.vocab_size, spec.protocol.context)
                for spec in specs
            )
        ),
        disk_bytes=2 * n_rows * _BYTES_PER_ROW
        + journals * largest * _JOURNAL_BYTES_PER_PARAM
        + _TOKEN_BYTES * (plan.scale.train_tokens + plan.scale.validation_tokens),
        shared_steps=sharing.shared_steps,
    )


def differences(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Options asked for that a stored plan does not have, as ``name: stored -> asked``."""
    return [
        f"{name}: {json.dumps(stored.get(name))} -> {json.dumps(value)}"
        for name, value in asked.items()
        if value is not None and stored.get(name) != value
    ]

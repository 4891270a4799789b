"""Schedules and targets as diffusers' scheduler configs, and back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm.diffusion import (
    AngularVelocity,
    Betas,
    Data,
    Noise,
    RectifiedFlow,
    Schedule,
    Target,
    Velocity,
    ZeroTerminalSNR,
)

STEPS = 1000  # the step numbers that diffusers tells a network run to here
_PREDICTIONS: dict[str, Target] = {
    "epsilon": Noise(),
    "v_prediction": AngularVelocity(),
    "sample": Data(),
}
_POWERS = {"linear": 1.0, "scaled_linear": 2.0}


class Described(NamedTuple):
    """A schedule and a target, and what a network that knows them is told: 1000 t + time_offset."""

    schedule: Schedule
    target: Target
    time_offset: float


def scheduler_config(described: Described, *, joint: bool) -> dict[str, Any]:
    """The config of the scheduler that samples the same. `joint`: for StableDiffusion3Pipeline,
    which takes other schedulers than the rest.

    ValueError names the combination that diffusers does not have.
    """
    schedule, target, _ = described
    if schedule == RectifiedFlow() and target == Velocity():
        _expect_offset(described, 0.0)
        if joint:
            return {
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "num_train_timesteps": STEPS,
                "shift": 1.0,
            }
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            "num_train_timesteps": STEPS,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "solver_order": 2,
            "final_sigmas_type": "zero",
            "steps_offset": 1,  # flows use none, and the pipeline asks for 1
        }
    stretched = isinstance(schedule, ZeroTerminalSNR)
    table = schedule.schedule if isinstance(schedule, ZeroTerminalSNR) else schedule
    names = {power: name for name, power in _POWERS.items()}
    predictions = {value: name for name, value in _PREDICTIONS.items()}
    if joint or not isinstance(table, Betas) or table.power not in names:
        raise ValueError(
            f"diffusers has no scheduler for {schedule} with {target}"
            + (" in StableDiffusion3Pipeline" if joint else "")
            + ": train with RectifiedFlow and Velocity, or (not for MMDiT) with Betas"
        )
    if target not in predictions:
        raise ValueError(
            f"diffusers has no scheduler for {target} on {schedule}: train with Noise, "
            "AngularVelocity or Data"
        )
    _expect_offset(described, -1.0)
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": table.steps,
        "beta_start": table.first,
        "beta_end": table.last,
        "beta_schedule": names[table.power],
        "prediction_type": predictions[target],
        "rescale_betas_zero_snr": stretched,
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
        "steps_offset": 1,
    }


def _expect_offset(described: Described, wanted: float) -> None:
    if described.time_offset != wanted:
        raise ValueError(
            f"this network is told 1000 t + {described.time_offset:g}, where diffusers tells it "
            f"1000 t + {wanted:g} on {described.schedule}: train with "
            f"backbone.time_offset={wanted:g}"
        )


def of_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler walks a flow, whose network is told 1000 t, and no table of steps."""
    return config.get("_class_name", "").startswith("FlowMatch") or bool(
        config.get("use_flow_sigmas")
    )


def described_by(config: Mapping[str, Any]) -> Described:
    """What a network was trained on, from the scheduler beside it.

    ValueError names what cannot be expressed here. How that scheduler samples is not taken over:
    the sampler is chosen here.
    """
    name = config.get("_class_name", "")
    if of_flow(config):
        return Described(RectifiedFlow(), Velocity(), 0.0)
    kind, prediction = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if kind not in _POWERS or prediction not in _PREDICTIONS or config.get("trained_betas"):
        raise ValueError(
            f"scheduler {name} with beta_schedule={kind!r}, prediction_type={prediction!r} cannot "
            f"be expressed here: only {sorted(_POWERS)} with {sorted(_PREDICTIONS)}, or a flow"
        )
    betas = Betas(
        config["beta_start"],
        config["beta_end"],
        _POWERS[kind],
        config.get("num_train_timesteps", STEPS),
    )
    schedule = ZeroTerminalSNR(betas) if config.get("rescale_betas_zero_snr") else betas
    return Described(schedule, _PREDICTIONS[prediction], -1.0)

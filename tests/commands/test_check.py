"""Sixty planted mistakes, each refused by its key and with a remedy before anything is built, and
every shipped experiment and choice passes."""

import json

import pytest
from omegaconf import OmegaConf

from ldm.commands.check import checked
from ldm.commands.composing import choices, composed
from ldm.commands.errors import CONF, explain
from ldm.commands.fitting import plan
from ldm.runs.folder import open_run, run_folder

AUTOENCODER, DIFFUSION, CLIP = ("emoji/autoencoder", "emoji/diffusion", "emoji/clip")

DIFFUSION_GROUPS = (
    *("backbone", "diffusion", "times", "weight", "sampler", "grid", "guidance", "text", "trainer"),
    *("lora", "debug", "logger"),
)

# (experiment, what is typed, the key that the message must name, a word of the remedy)
MISTAKES = [
    # keys that do not exist
    (AUTOENCODER, "trainer.max_step=3", "trainer.max_step", "max_steps"),
    (AUTOENCODER, "+trainer.max_step=3", "trainer.max_step", "'max_steps'"),
    (AUTOENCODER, "+autoencoder.widht=3", "autoencoder.widht", "'width'"),
    (AUTOENCODER, "+learning_rate=1e-4", "learning_rate", "take it out"),
    (AUTOENCODER, "lr=1e-4", "lr", "module.optimizer.lr"),
    (AUTOENCODER, "+sampler=heun", "sampler", "take it out"),
    (AUTOENCODER, "+backbone=dit_tiny", "backbone", "take it out"),
    (AUTOENCODER, "+evaluation.evry=3", "evaluation.evry", "'every'"),
    (AUTOENCODER, "+checkpoint.keep_evry=3", "checkpoint.keep_evry", "'keep_every'"),
    (AUTOENCODER, "+globl_batch=8", "globl_batch", "'global_batch'"),
    (AUTOENCODER, "+module.ema=0.9", "module.ema", "take it out"),
    (AUTOENCODER, "+module.optimizer.learning_rate=1", "module.optimizer.learning_rate", "take"),
    (AUTOENCODER, "+module.lr_schedule.warmups=1", "module.lr_schedule.warmups", "'warmup'"),
    (AUTOENCODER, "+module.loss.edge=1", "module.loss.edge", "'edges'"),
    (DIFFUSION, "+diffusion.weight.gama=3", "diffusion.weight.gama", "take it out"),
    (DIFFUSION, "+sampler.grid.step=3", "sampler.grid.step", "take it out"),
    (DIFFUSION, "+backbone.chanels=[32]", "backbone.chanels", "'channels'"),
    (DIFFUSION, "+text.encoder.layers=1", "text.encoder.layers", "'layer'"),
    (DIFFUSION, "+data.train.sise=32", "data.train.sise", "'size'"),
    (DIFFUSION, "+data.test.size=32", "data.test", "take it out"),
    (DIFFUSION, "+autoencoder.width=8", "autoencoder", "take it out"),
    (CLIP, "+clip.dim=64", "clip.dim", "take it out"),
    # choices that do not exist
    (AUTOENCODER, "autoencoder=emojy", "autoencoder", "'emoji'"),
    (AUTOENCODER, "critic=non", "critic", "'none'"),
    (DIFFUSION, "backbone=unet_emojy", "backbone", "'unet_emoji'"),
    (DIFFUSION, "sampler=huen", "sampler", "'heun'"),
    (DIFFUSION, "data=emoij", "data", "'emoji'"),
    (DIFFUSION, "trainer=gpus", "trainer", "'gpu'"),
    (DIFFUSION, "debug=fats", "debug", "'fast'"),
    (AUTOENCODER, "logger=wandbb", "logger", "'wandb'"),
    # types
    (AUTOENCODER, "seed=abc", "seed", "whole number"),
    (AUTOENCODER, "global_batch=32.5", "global_batch", "whole number"),
    (AUTOENCODER, "image_size=big", "image_size", "whole number"),
    (AUTOENCODER, "precision=bf16mixed", "precision", "'bf16-mixed'"),
    (AUTOENCODER, "precision=bf16-true", "precision=bf16-true", "trainer=fsdp"),
    (AUTOENCODER, "spikes.action=panic", "spikes.action", "'go_back'"),
    (AUTOENCODER, "spikes.factor=high", "spikes.factor", "number"),
    (AUTOENCODER, "checkpoint.best=3", "checkpoint.best", "text"),
    (AUTOENCODER, "checkpoint=5", "checkpoint", ""),
    (AUTOENCODER, "checkpoint.keep_every=often", "checkpoint.keep_every", "whole number"),
    (AUTOENCODER, "trainer.max_steps=1e4x", "trainer.max_steps", "whole number"),
    (AUTOENCODER, "trainer.gradient_clip_val=some", "trainer.gradient_clip_val", "number"),
    (AUTOENCODER, "autoencoder.width=wide", "autoencoder.width", "whole number"),
    (AUTOENCODER, "autoencoder.multipliers=2", "autoencoder.multipliers", "list"),
    (AUTOENCODER, "autoencoder.multipliers=[1,x]", "autoencoder.multipliers", "list"),
    (AUTOENCODER, "module.optimizer.lr=abc", "module.optimizer.lr", "number"),
    (DIFFUSION, "module.optimizer.betas=0.9", "module.optimizer.betas", "list"),
    (DIFFUSION, "module.optimizer.fused=yes_please", "module.optimizer.fused", "true"),
    (AUTOENCODER, "module.loss=l2", "module.loss", "ReconstructionLoss"),
    (DIFFUSION, "backbone.channels=abc", "backbone.channels", "list"),
    (DIFFUSION, "diffusion.stratified=1", "diffusion.stratified", "true or false"),
    (DIFFUSION, "data.allow_change=perhaps", "data.allow_change", "true or false"),
    (DIFFUSION, "text.sizes=large", "text.sizes", "true or false"),
    (DIFFUSION, "evaluation.guidance=strong", "evaluation.guidance", "number"),
    (DIFFUSION, "evaluation.grid_prompts=apple", "evaluation.grid_prompts", "list"),
    (DIFFUSION, "+data.train.crop=middle", "data.train.crop", "'centre'"),
    (DIFFUSION, "sampler.grid=uniform", "sampler.grid", "Grid"),
    (
        AUTOENCODER,
        "trainer=ddp trainer.strategy.static_graph=true",
        "trainer.strategy.static_graph",
        "set it to false",
    ),
    (DIFFUSION, "evaluation.metrics=fd_clip", "evaluation.metrics", "list"),
    (DIFFUSION, "evaluation.metrics=[fd_clipp]", "evaluation.metrics", "'fd_clip'"),
    (DIFFUSION, "evaluation.metrics=[psnr]", "evaluation.metrics", "leave it out"),
    (DIFFUSION, "evaluation.reference=[nowhere]", "nowhere", "ldm stats make"),
    (DIFFUSION, "backbone.init=3", "backbone.init", "a text"),
    (DIFFUSION, "+backbone.inti=x", "backbone.inti", "take it out"),
    (DIFFUSION, "+module.conditioning.dropout=1", "module.conditioning.dropout", "take it out"),
    (
        DIFFUSION,
        "lora={_target_: ldm.models.LowRankAdaptation, rank: 0, targets: [x]}",
        "lora.rank",
        "at least 1",
    ),
    (DIFFUSION, "backbone.init=nowhere", "backbone.init", "download or import"),
    (DIFFUSION, "module.conditioning.token_masking=1", "token_masking", "less than 1"),
    (DIFFUSION, "guidance.push=straight", "guidance.push", "Push"),
    (DIFFUSION, "module.uncertainty=learned", "module.uncertainty", "LearnedUncertainty"),
    # ranges
    (AUTOENCODER, "accumulate=0", "accumulate", "at least 1"),
    (AUTOENCODER, "workers=-1", "workers", "at least 0"),
    (AUTOENCODER, "overfit=0", "overfit", "at least 1"),
    (AUTOENCODER, "overfit=few", "overfit", "whole number"),
    (AUTOENCODER, "log_every=0", "log_every", "at least 1"),
    (AUTOENCODER, "trainer.max_steps=0", "trainer.max_steps", "at least 1"),
    (AUTOENCODER, "module.ema_decay=1.5", "module.ema_decay", "less than 1"),
    (AUTOENCODER, "module.optimizer.lr=-1e-3", "module.optimizer.lr", "more than 0"),
    (AUTOENCODER, "module.optimizer.lr=nan", "module.optimizer.lr", "more than 0"),
    (DIFFUSION, "sampler.steps=0", "sampler.steps", "at least 1"),
    (DIFFUSION, "module.condition_dropout=1.0", "module.condition_dropout", "less than 1"),
    (DIFFUSION, "evaluation.prompts=1", "evaluation.prompts", "at least 2"),
    (DIFFUSION, "backbone.channels=[0,32]", "backbone.channels", "at least 1"),
    (AUTOENCODER, "seed=99999999999999999999", "seed", "at most 4294967295"),
    (AUTOENCODER, "watchdog.factor=-1", "watchdog.factor", "at least 1"),
    (AUTOENCODER, "watchdog.least=nan", "watchdog.least", "more than 0"),
    (AUTOENCODER, "blocks.recompute_every=-1", "blocks.recompute_every", "at least 0"),
    # where it runs
    (AUTOENCODER, "trainer.devices=0", "trainer.devices=0", "1 or more"),
    (AUTOENCODER, "trainer=cpu trainer.devices=-1", "trainer.devices=-1", "1 or more"),
    (AUTOENCODER, "trainer.devices=many", "trainer.devices=many", "set auto"),
    (AUTOENCODER, "trainer.accelerator=banana", "trainer.accelerator=banana", "gpu"),
    (AUTOENCODER, "+trainer.strategy=nonsense", "trainer.strategy=nonsense", "trainer=ddp"),
    (AUTOENCODER, "+trainer.precision=16-mixed", "trainer.precision", "set precision"),
    # what is taken out, and what is no name
    (AUTOENCODER, "~module", "module", "~module away"),
    (CLIP, "~clip", "clip", "~clip away"),
    (CLIP, "~checkpoint.keep", "checkpoint.keep", "~checkpoint.keep away"),
    (CLIP, "name=???", "name: not set", "set name=VALUE"),
    (AUTOENCODER, "checkpoint=null", "checkpoint=null", "checkpoint.KEY=VALUE"),
    (AUTOENCODER, "module=null", "module=null", "module.KEY=VALUE"),
    (AUTOENCODER, "module.optimizer=null", "module.optimizer=null", "Callable"),
    (AUTOENCODER, "~autoencoder", "autoencoder: nothing says", "autoencoder=NAME"),
    (CLIP, "~evaluation.every", "evaluation.every", "set evaluation.every=VALUE"),
    (AUTOENCODER, "checkpoint.best=typo", "checkpoint.best=typo", "such as val/loss"),
    (AUTOENCODER, "name=ü", "name=ü", "write 'name=\"ü\"'"),
    # targets and parts in the wrong place
    (DIFFUSION, "backbone._target_=ldm.models.Unet", "backbone._target_", "'UNet'"),
    (DIFFUSION, "backbone._target_=os.system", "backbone._target_", "ldm."),
    (
        DIFFUSION,
        "diffusion.schedule._target_=ldm.diffusion.Velocity",
        "diffusion.schedule",
        "_target_",
    ),
    (
        AUTOENCODER,
        "module.critic={_target_: ldm.models.L1}",
        "module.critic",
        "CriticLoss",
    ),
    # parts that exclude each other
    (AUTOENCODER, "accumulate=5", "global_batch", "multiple of 5"),
    (AUTOENCODER, "trainer.devices=3", "global_batch", "multiple of 3"),
    (AUTOENCODER, "module.freeze_encoder=true", "autoencoder.init=null", "autoencoder.init=RUN"),
    (AUTOENCODER, "image_size=60", "image_size", "multiple"),
    (AUTOENCODER, "critic=patch image_size=16", "critic", "fewer module.critic.network.layers"),
    (AUTOENCODER, "+autoencoder.image_channels=1", "image_channels=1", "set 3"),
    (AUTOENCODER, "module.lr_schedule.warmup=30000", "lr_schedule.warmup", "shorter warmup"),
    (AUTOENCODER, "checkpoint.keep_every=700", "checkpoint.keep_every", "multiple"),
    (AUTOENCODER, "data.val.size=32", "data.val.size", "image_size=32"),
    (AUTOENCODER, "evaluation.clip=nowhere", "nowhere", ""),
    (AUTOENCODER, "autoencoder.groups=7", "autoencoder", ""),
    (AUTOENCODER, "name=../x", "name", "set name="),
    (DIFFUSION, "text.width=128", "text.width", "null"),
    (DIFFUSION, "+latent={channels: 8, size: 7}", "backbone", "image_size"),
    (DIFFUSION, "backbone.text_width=77", "backbone.text_width", "text.width"),
    (DIFFUSION, "backbone.in_channels=3", "backbone.in_channels", "latent.channels"),
    (DIFFUSION, "backbone.heads=[1]", "backbone", "each one entry a level"),
    (DIFFUSION, "guidance.low=0.9 guidance.high=0.5", "guidance.low", "set 0 <="),
    (DIFFUSION, "guidance.push_momentum=1.0", "guidance.push_momentum", "between -1 and 1"),
    (DIFFUSION, "guidance.limit=-3.0", "guidance.limit", "null for none"),
    (
        DIFFUSION,
        "diffusion.variance={_target_:ldm.diffusion.LearnedVariance} +backbone.out_channels=5",
        "backbone.out_channels",
        "=16",
    ),
    (DIFFUSION, "diffusion.offset_noise=-0.1", "offset_noise", "0 for none"),
    (DIFFUSION, "grid=karas", "grid", "'karras'"),
    (DIFFUSION, "times=lognormal", "times", "logit_normal"),
]


def verdict(experiment, *overrides):
    """What the terminal would show, or None."""
    try:
        config = composed([f"experiment={experiment}", *overrides])
        checked(config)
        list(plan(config))
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("hydra", "omegaconf"):
            return explain(error, [f"experiment={experiment}", *overrides])
        if isinstance(error, ValueError | FileNotFoundError):
            return str(error)
        raise
    return None


@pytest.mark.parametrize(("experiment", "typed", "key", "remedy"), MISTAKES)
def test_a_planted_mistake_is_refused_by_its_key_with_a_remedy(experiment, typed, key, remedy):
    sized = "latent" in typed or experiment != DIFFUSION
    overrides = [typed] if ": " in typed else typed.split()
    said = verdict(experiment, *([] if sized else ["latent={channels: 8, size: 8}"]), *overrides)
    assert said is not None, f"{typed} was let through"
    assert "\n" not in said
    assert key in said
    assert remedy in said


def test_sixty_at_least():
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_shipped_experiment_passes(experiment):
    override = f"experiment={experiment}"
    own = experiment.startswith(("folder/", "imagenet/", "laion/"))  # the user's own
    folder = ["data.folder=nowhere"] if own else []
    if "vavae" in experiment:
        folder.append("module.alignment.features.folder=nowhere")
    config = composed([override, *folder])
    checked(config)
    lines = dict(plan(config))
    assert lines["stage"] == config.stage_name
    assert lines["steps"].startswith(f"{config.trainer.max_steps} of {config.global_batch} ")
    assert ("first" in lines) == (bool(folder) or config.stage_name == "diffusion")


@pytest.mark.parametrize(
    ("group", "stage"),
    [
        *[(group, DIFFUSION) for group in ("backbone", "diffusion", "sampler", "text", "trainer")],
        *[(group, AUTOENCODER) for group in ("autoencoder", "loss", "critic")],
    ],
)
def test_every_choice_passes(group, stage, monkeypatch):
    monkeypatch.setattr("ldm.commands.check.find_spec", lambda name: name)
    for choice in choices(group):
        checked(composed([f"experiment={stage}", f"{group}={choice}", "global_batch=64"]))


@pytest.mark.parametrize("stage", [AUTOENCODER, DIFFUSION, CLIP])
@pytest.mark.parametrize("debug", choices("debug"))
def test_every_debug_choice_goes_with_every_stage(debug, stage):
    checked(composed([f"experiment={stage}", f"debug={debug}"]))


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_a_logger_whose_package_is_missing_is_refused(logger, monkeypatch):
    monkeypatch.setattr("ldm.commands.check.find_spec", lambda name: None)
    assert f"pip install {logger}" in verdict(AUTOENCODER, f"logger={logger}")


def test_a_key_in_an_experiment_file_that_nobody_reads_is_refused(tmp_path, monkeypatch):
    for path in CONF.rglob("*.yaml"):
        copy = tmp_path / path.relative_to(CONF)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    typo = tmp_path / "experiment" / "typo.yaml"
    typo.write_text(
        "# @package _global_\nname: x\nmodule: {ema_decai: 0.5}\ntrainer: {mx_steps: 3}"
    )
    monkeypatch.setattr("ldm.commands.composing.CONF", tmp_path)
    said = verdict("typo", "stage=autoencoder")
    assert "module.ema_decai" in said
    assert "did you mean 'ema_decay'" in said


def test_a_plan_says_what_is_missing_and_what_it_measured():
    lines = dict(plan(composed(["experiment=emoji/diffusion", "first_stage=nowhere"])))
    assert "first_stage=nowhere" in lines["first"]
    lines = dict(
        plan(composed(["experiment=emoji/autoencoder", "autoencoder=kl_f8", "image_size=64"]))
    )
    assert lines["latents"].startswith("4x8x8, 48 times")


def test_a_run_that_is_there_is_compared_with(tmp_path):
    own = ["autoencoder=tiny", "image_size=32", f"run_root={tmp_path}", "name=there"]
    config = composed([f"experiment={AUTOENCODER}", *own, "precision=32-true"])
    open_run(run_folder(str(tmp_path), "there"), OmegaConf.to_container(config, resolve=True), [])
    assert verdict(AUTOENCODER, *own, "precision=32-true", "log_every=7") is None
    assert "seed: 0 -> 4" in verdict(AUTOENCODER, *own, "precision=32-true", "seed=4")
    assert "precision" in verdict(AUTOENCODER, *own, "precision=bf16-mixed")
    rate = composed(
        [f"experiment={AUTOENCODER}", *own, "precision=32-true", "module.optimizer.lr=0.5"]
    )
    assert dict(plan(rate))["changed"] == "module.optimizer.lr: 0.003 -> 0.5"
    facts = {"facts": {"data": {"train": "others", "val": "others"}}}
    (tmp_path / "there" / "state.json").write_text(json.dumps(facts))
    assert "other pictures" in verdict(AUTOENCODER, *own, "precision=32-true")


def test_what_this_machine_lacks_is_a_thing_to_do_first():
    lines = plan(composed([f"experiment={AUTOENCODER}", "trainer.accelerator=tpu"]))
    assert "trainer.accelerator=tpu" in dict(lines)["first"]


def test_the_checks_leave_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert verdict(AUTOENCODER) is None
    assert list(tmp_path.iterdir()) == []

"""`ldm export`: a trained run in the formats of other tools."""

import argparse
from pathlib import Path
from typing import Any

from ldm.files import drafted, read_json

FORMATS = ("diffusers", "compvis", "safetensors", "lora")


def add_parser(subparsers: Any) -> None:
    """The verb and its options."""
    parser = subparsers.add_parser("export", help="a trained run for other tools")
    parser.add_argument("run", help="the folder of an autoencoder or diffusion run")
    parser.add_argument("out", help="the folder to write; it must not exist yet")
    parser.add_argument("--to", choices=FORMATS, default="diffusers", help="(default: diffusers)")
    parser.add_argument("--licence", default="unknown", help="goes into the model card")
    parser.add_argument("--first-stage", help="another place of the run's first stage")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the averaged weights of the run's newest checkpoint, and a model card."""
    from ldm.runs.folder import RunFolder

    out = Path(arguments.out)
    if out.exists():
        raise ValueError(f"{out} exists already: name a folder that does not, or remove it")
    stage = RunFolder(Path(arguments.run)).config().get("stage_name")
    if arguments.to == "lora" and stage != "diffusion":
        raise ValueError(f"{arguments.run} is a run of stage {stage!r}, which has no lora")
    if stage not in ("autoencoder", "diffusion"):
        raise ValueError(
            f"{arguments.run} holds a run of stage {stage!r}, and only autoencoder and diffusion "
            "runs are exported; a clip run's folder clip/ is in open_clip's own format already"
        )
    write = _autoencoder if stage == "autoencoder" else _diffusion
    with drafted(out) as draft:
        notes = write(arguments, draft)
        card = model_card(Path(arguments.run), arguments.licence, notes, draft)
        (draft / "README.md").write_text(card, encoding="utf-8")
    print(f"wrote {out}: {notes}")
    return 0


def _first_stage(codec: Any) -> Any:
    from ldm.interop.first_stage import FirstStage

    return FirstStage(codec.autoencoder, codec.statistics.mean, codec.statistics.std)


def _autoencoder(arguments: argparse.Namespace, out: Path) -> str:
    from ldm.commands.first_stage import load_codec
    from ldm.interop.first_stage import write_first_stage
    from ldm.runs.folder import RunFolder

    codec = load_codec(arguments.run)
    config = RunFolder(Path(arguments.run)).config()
    if arguments.to == "diffusers":
        library, name = write_first_stage(out, _first_stage(codec), config["image_size"])
        if library != "diffusers":
            return (
                "it folds pixels, which diffusers has no class for: diffusers.AutoModel."
                f"from_pretrained(..., trust_remote_code=True) loads {name} of {library}.py beside "
                "the weights"
            )
        return f"diffusers.{name}.from_pretrained loads it"
    if arguments.to == "compvis":
        from ldm.interop.compvis_writing import write_compvis

        write_compvis(out, None, first=_first_stage(codec), text=None)
        return "model.safetensors holds first_stage_model.* with normalised latents"
    _write_ours(out, codec.autoencoder, config)
    return "model.safetensors holds the weights under our names, config.yaml the run's settings"


def _diffusion(arguments: argparse.Namespace, out: Path) -> str:
    from omegaconf import OmegaConf

    from ldm.commands.trained import load_diffusion
    from ldm.interop.compvis_writing import write_compvis
    from ldm.interop.pipelines import Parts, write_pipeline
    from ldm.interop.schedulers import Described
    from ldm.models import TextConditioned

    if arguments.to == "lora":
        return _lora(arguments, out)
    trained = load_diffusion(arguments.run, arguments.first_stage)
    network: Any = trained.denoiser.network  # type: ignore[attr-defined]
    if arguments.to == "safetensors":
        _write_ours(out, network, OmegaConf.to_container(trained.config, resolve=True))
        return "model.safetensors holds the network under our names, config.yaml the settings"
    if isinstance(network, TextConditioned):
        raise ValueError(
            "this network has a text transformer of its own, which is in no other tool: use --to "
            "safetensors"
        )
    texts, first = texts_of(trained.captions), _first_stage(trained.codec)
    if arguments.to == "compvis":
        write_compvis(out, network, first=first, text=texts[0] if len(texts) == 1 else None)
        whole = "model.safetensors holds all parts under the prefixes of Stable Diffusion"
        return f"{whole}, but for the text encoders" if len(texts) > 1 else whole
    target: Any = trained.denoiser.target  # type: ignore[attr-defined]
    if network.time.scale != 1000:
        raise ValueError(
            f"this network is told {network.time.scale:g} t, and diffusers tells it 1000 t: "
            "train with backbone.time_scale=1000"
        )
    described = Described(trained.denoiser.schedule, target, network.time.offset)
    size = trained.codec.latent_shape(trained.config.image_size)[1]
    name = write_pipeline(out, network, Parts(first, texts, described, size))
    index = read_json(out / "model_index.json")
    if index["vae"][0] == "diffusers":
        return f"{name}; diffusers.DiffusionPipeline.from_pretrained loads it"
    return (
        f"{name}; diffusers.DiffusionPipeline.from_pretrained(..., trust_remote_code=True) loads "
        f"it: its autoencoder folds pixels, which diffusers has no class for, so that the class "
        f"lies beside its weights, in vae/{index['vae'][0]}.py"
    )


def texts_of(captions: Any) -> list[Any]:
    """The text encoders in order, as pipelines hold them; none where there are classes. ValueError
    for one that is joined as no pipeline joins."""
    from ldm.frozen.captions import OpenClipCaptions
    from ldm.frozen.captions_joined import JoinedCaptions
    from ldm.frozen.captions_transformers import TransformersCaptions
    from ldm.frozen.sizes import SizedCaptions
    from ldm.interop.text import HubText, Tower

    match captions:
        case OpenClipCaptions():
            return [Tower(captions.model, captions.tokenizer, captions.layer)]
        case TransformersCaptions():
            pooled = captions.pooling == "output"
            parts = (captions.model, captions.tokenizer, captions.layer)
            return [HubText(*parts, pooled=pooled, masked=captions.masked)]
        case SizedCaptions():
            return texts_of(captions.encoder)
        case JoinedCaptions():
            texts = [text for encoder in captions.encoders for text in texts_of(encoder)]
            if captions.join != ("widths" if len(texts) == 2 else "tokens"):
                raise ValueError(
                    f"{len(texts)} text encoders with join={captions.join} are in no pipeline of "
                    "diffusers: use --to safetensors"
                )
            return texts
    return []


def _lora(arguments: argparse.Namespace, out: Path) -> str:
    """The low-rank layers alone, for the network that the run began with."""
    from omegaconf import OmegaConf

    from ldm.commands.building import build
    from ldm.commands.weights import adaptation_of, averaged, newest, trained_backbone
    from ldm.interop.lora import FILE, component_of, network_table, write_lora
    from ldm.runs.folder import RunFolder

    folder = RunFolder(Path(arguments.run))
    config = OmegaConf.create(folder.config())
    if adaptation_of(config) is None:
        raise ValueError(f"{arguments.run} was trained with lora=none: use another --to")
    plain: Any = build(config.backbone, "backbone")
    network = trained_backbone(config, averaged(newest(folder)), merged=False)
    write_lora(out, network, network_table(plain), component_of(plain))
    base = config.backbone.get("init")
    return f"{FILE}; load_lora_weights of the pipeline that it belongs to, {base}, loads it"


def _write_ours(out: Path, network: Any, config: Any) -> None:
    import yaml

    from ldm.tensor_files import write_tensors

    out.mkdir(parents=True)
    write_tensors(out / "model.safetensors", network.state_dict())
    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def model_card(run: Path, licence: str, notes: str, out: Path) -> str:
    """What the model is, from the run's own records; nothing that they do not say."""
    import yaml

    from ldm.commands.weights import newest
    from ldm.runs.folder import RunFolder

    folder = RunFolder(run)
    config = folder.config()
    index = out / "model_index.json"
    front: dict[str, Any] = {"license": licence, "tags": ["ldm"]}
    if index.is_file():
        front |= {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    lines = [
        f"---\n{yaml.safe_dump(front)}---",
        f"# {config.get('name', run.name)}",
        f"Stage {config['stage_name']}, trained with ldm: {newest(folder).step} optimizer steps of "
        f"{config.get('global_batch')} pictures at {config.get('image_size')} pixels; "
        "averaged weights.",
        f"To load: {notes}.",
        *([_usage(read_json(index), config)] if index.is_file() else []),
        f"## Data\n\n```yaml\n{yaml.safe_dump(config.get('data'), sort_keys=False)}```",
        f"## Last metrics of the run\n\n{_metrics(run / 'metrics.jsonl')}",
    ]
    return "\n\n".join(lines) + "\n"


def _usage(index: dict[str, Any], config: dict[str, Any]) -> str:
    """How to draw as the run itself did: the pipelines' own guidance is another."""
    evaluation, sampler = config.get("evaluation", {}), config.get("sampler", {})
    trust = "" if index["vae"][0] == "diffusers" else ", trust_remote_code=True"
    classes = index["_class_name"] == "DiTPipeline"
    prompt = (evaluation.get("grid_prompts") or ["a prompt"])[0]
    told = {
        "guidance_scale": evaluation.get("guidance"),
        "num_inference_steps": sampler.get("steps"),
    }
    asked = ["[0]" if classes else f'"{prompt}"']
    asked += [f"{name}={value}" for name, value in told.items() if value is not None]
    return f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER"{trust})
pipeline({", ".join(asked)}).images[0].save("picture.png")
```"""


def _metrics(path: Path) -> str:
    """The last value of each metric that was logged, as a table."""
    from ldm.runs.table import history

    rows = [f"| {name} | {values[-1]} |" for name, (_, values) in history(path).items()]
    if not rows:
        return "None were recorded."
    return "\n".join(["| metric | value |", "|---|---|", *rows])

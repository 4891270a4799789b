"""Frozen networks that metrics look through: pictures in [-1, 1] to one row of numbers each.

Each resizes pictures as its literature does and runs in float32 whatever precision the training
has. Several metrics on one network cost one pass: the features of the last batch are remembered.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ldm.frozen.clip import Clip, load_clip
from ldm.frozen.inception import Inception, load_inception
from ldm.frozen.resizing import shortest_and_crop, squash, tensorflow_bilinear
from ldm.metrics import TextAndImageFeatures
from ldm.types import Image

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class _OneModel:
    """A frozen model whose answer to the last pictures is remembered. A subclass says in `seen`
    what it is asked, in float32 and without gradients."""

    name: str
    width: int

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.last = _LastBatch(self._images)

    def to(self, device: torch.device) -> "_OneModel":
        """Moves the model; returns itself."""
        self.model.to(device)
        return self

    def __call__(self, images: Image) -> Float[Tensor, "b d"]:
        """`[b width]`, on the pictures' device, to which the model moves."""
        return self.last(images)

    def seen(self, images: Image) -> Tensor:
        """`[b width]` of pictures on the model's device."""
        raise NotImplementedError

    def _images(self, images: Image) -> Tensor:
        self.to(images.device)
        with _in_float32(images.device):
            return self.seen(images)


class ClipFeatures(_OneModel):
    """Both towers of an open_clip model: projected embeddings, not brought to length one.

    `name` is what results call the model; the first digits of its weights' hash are added.
    """

    def __init__(self, clip: Clip, name: str = "clip") -> None:
        prepare = open_clip.get_model_preprocess_cfg(clip.model)
        size, mode = prepare["size"], prepare.get("interpolation", "bicubic")
        self.side: int = size if isinstance(size, int) else size[0]
        way = prepare.get("resize_mode", "shortest")
        if way not in ("shortest", "squash"):
            raise ValueError(
                f"CLIP {name} resizes by {way!r}, which is none of 'shortest', 'squash': "
                "use a model with one of these"
            )
        self.tokenizer = clip.tokenizer
        self.resize = squash if way == "squash" else shortest_and_crop
        self.mode = mode
        self.normalise = _Normalise(prepare["mean"], prepare["std"])
        self.name = f"{name}-{weights_hash(clip.model)}/{mode}-{way}-{self.side}"
        super().__init__(clip.model)
        self.width = self.texts([""]).shape[1]

    def seen(self, images: Image) -> Tensor:
        """The model's answer."""
        pixels = self.normalise(self.resize(images, self.side, self.mode))
        return self.model.encode_image(pixels).float()

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """`[b width]`, on the model's device; a caption longer than the context is cut."""
        device = next(self.model.parameters()).device
        with _in_float32(device):
            tokens = self.tokenizer(list(captions)).to(device)
            return self.model.encode_text(tokens).float()


@cache  # several metrics look through one network
def open_clip_features(folder: str) -> ClipFeatures:
    """The features of the CLIP in a folder that open_clip reads; FileNotFoundError says what is
    missing."""
    return ClipFeatures(load_clip(folder), Path(folder.removeprefix("asset:")).name)


class TransformersClipFeatures(_OneModel):
    """Both towers of a CLIP in transformers' format, from a local folder."""

    def __init__(self, folder: str) -> None:
        # Heavy, and wanted by few: imported when it is used.
        from transformers import AutoTokenizer, CLIPModel  # noqa: PLC0415

        path = _folder(folder, "CLIP", "config.json")
        super().__init__(CLIPModel.from_pretrained(path, local_files_only=True).float())
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.side: int = self.model.config.vision_config.image_size
        self.width = self.model.config.projection_dim
        self.normalise = _Normalise(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        self.name = f"{path.name}-{weights_hash(self.model)}/bicubic-shortest-{self.side}"

    def seen(self, images: Image) -> Tensor:
        """The model's answer."""
        pixels = self.normalise(shortest_and_crop(images, self.side))
        return self.model.get_image_features(pixels).pooler_output

    def texts(self, captions: Sequence[str]) -> Float[Tensor, "b d"]:
        """`[b width]`, on the model's device; a caption longer than the context is cut."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.model.device)
        with _in_float32(self.model.device):
            return self.model.get_text_features(**tokens).pooler_output


@cache
def clip_features(folder: str) -> TextAndImageFeatures:
    """The features of the CLIP in a folder, which open_clip or transformers wrote; ValueError or
    FileNotFoundError says what is missing."""
    path = Path(folder).expanduser()
    if (path / "config.json").is_file() and not (path / "open_clip_config.json").is_file():
        return TransformersClipFeatures(folder)
    return open_clip_features(folder)


class Dinov2Features(_OneModel):
    """The class token of a DINOv2 in transformers' format, from a local folder (FD-DINOv2 of Stein
    et al. 2023 takes the ViT-L/14)."""

    side = 224

    def __init__(self, folder: str) -> None:
        # Heavy, and wanted by few: imported when it is used.
        from transformers import Dinov2Model  # noqa: PLC0415

        path = _folder(folder, "DINOv2", "config.json")
        super().__init__(Dinov2Model.from_pretrained(path, local_files_only=True).float())
        self.width = self.model.config.hidden_size
        self.normalise = _Normalise(*_IMAGENET)
        self.name = f"{path.name}-{weights_hash(self.model)}/bicubic-squash-{self.side}"

    def seen(self, images: Image) -> Tensor:
        """The model's answer."""
        pixels = self.normalise(squash(images, self.side))
        return self.model(pixels).pooler_output


class InceptionFeatures:
    """Inception v3 of 2015-12-05, in which FID, KID and the Inception score are defined.

    `output` is `pool` (2048 numbers: FID, KID), `spatial` (7 channels of the 17x17 map of
    TensorFlow's mixed_6/conv, 2023 numbers: sFID of Nash et al. 2021) or `logits` (1008 numbers
    without their bias: Inception score). `weights` is a file in torchvision's names, such as
    pt_inception-2015-12-05-6726825d.pth; None looks for that one in the cache folder.
    """

    side = 299

    def __init__(
        self, output: Literal["pool", "spatial", "logits"] = "pool", weights: str | None = None
    ) -> None:
        self.network = _shared_inception(weights)
        self.output = output
        self.width = {"pool": 2048, "spatial": 2023, "logits": 1008}[output]
        self.name = f"inception-{self.network.hash}/tf1-bilinear-{self.side}/{output}"

    def to(self, device: torch.device) -> "InceptionFeatures":
        """Moves the network, which all InceptionFeatures of the same weights share."""
        self.network.model.to(device)
        return self

    def __call__(self, images: Image) -> Float[Tensor, "b d"]:
        """`[b width]`, on the pictures' device, to which the network moves."""
        return self.network.last(images)[self.output]


class _SharedInception:
    def __init__(self, model: Inception, hash: str) -> None:
        self.model = model
        self.hash = hash
        self.last = _LastBatch(self._images)

    def _images(self, images: Image) -> dict[str, Tensor]:
        self.model.to(images.device)
        with _in_float32(images.device):
            pixels = tensorflow_bilinear(images, InceptionFeatures.side)
            outputs: dict[str, Tensor] = self.model((pixels - 128) / 128)
            return outputs


@cache  # FID, KID, sFID and the Inception score look through one network
def _shared_inception(weights: str | None) -> _SharedInception:
    model, digest = load_inception(weights)
    return _SharedInception(model, digest)


class _Normalise:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Levels 0..255 to zero mean and unit variance over the network's training data."""
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        return (pixels / 255 - mean[:, None, None]) / std[:, None, None]


class _LastBatch:
    """Remembers what a function made of the last pictures it was given."""

    def __init__(self, function: Callable[[Image], Any]) -> None:
        self.function = function
        self.images: Tensor | None = None
        self.version = -1
        self.made: Any = None

    def __call__(self, images: Image) -> Any:
        if images.is_inference():  # these do not count changes in place
            return self.function(images)
        if self.images is not images or self.version != images._version:
            self.made = self.function(images)
            self.images, self.version = images, images._version
        return self.made


@contextmanager
def _in_float32(device: torch.device) -> Iterator[None]:
    """No gradients and no autocast: a metric does not depend on the training's precision."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def weights_hash(model: nn.Module) -> str:
    """Eight digits that stand for all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:8]


def _folder(folder: str, what: str, needed: str) -> Path:
    path = Path(folder).expanduser()
    if not (path / needed).is_file():
        raise ValueError(
            f"there is no {what} model in {path} (no {needed}): put the files of a model in "
            "transformers' format there (config, safetensors, tokenizer), or name another folder"
        )
    return path

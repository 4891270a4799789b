import numpy as np
import open_clip
import pytest
import torch
from PIL import Image as Pictures
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x,
)

from ldm.frozen.clip import new_clip, save_clip
from ldm.frozen.features import (
    ClipFeatures,
    Dinov2Features,
    TransformersClipFeatures,
    clip_features,
)
from ldm.frozen.resizing import shortest_and_crop, squash, tensorflow_bilinear
from ldm.metrics import CLIPScore, Features, TextAndImageFeatures, clip_scores, to_bytes

CAPTIONS = ["a red apple", "grinning face", "", "an octopus, " * 40]


def features_of(clip, name="tiny"):
    return ClipFeatures(clip, name)


def pictures(*size, count=4):
    """Smooth random pictures that were 8-bit, as if read from files."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    return (smooth * 255).round() / 127.5 - 1


def as_pil(image):
    return Pictures.fromarray(to_bytes(image[None])[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (97, 33), (20, 20)])
def test_resizing_is_pils_to_one_level(size):
    images = pictures(*size)
    for side in (32, 48):
        ours = squash(images, side)
        theirs = [
            np.asarray(as_pil(image).resize((side, side), Pictures.BICUBIC)) for image in images
        ]
        difference = np.abs(ours.permute(0, 2, 3, 1).numpy() - np.stack(theirs))
        assert difference.max() <= 1
        assert difference.mean() < 0.15  # ties, mostly


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (97, 33)])
def test_tensorflow_bilinear_is_torch_fidelitys(size):
    images = pictures(*size)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(
        to_bytes(images).float(), size=(75, 75), align_corners=False
    )
    torch.testing.assert_close(tensorflow_bilinear(images, 75), theirs, atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return new_clip(16, vision, text)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (50, 70)])
def test_clip_score_is_what_open_clips_own_pipeline_gives(clip, size):
    images = pictures(*size)
    prepare = open_clip.image_transform(
        32, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    with torch.no_grad():
        a = clip.model.encode_image(torch.stack([prepare(as_pil(image)) for image in images]))
        b = clip.model.encode_text(clip.tokenizer(CAPTIONS))
    theirs = 100 * torch.cosine_similarity(a, b).clamp(min=0)
    ours = clip_scores(features_of(clip), images, CAPTIONS)
    assert theirs.max() > 1
    torch.testing.assert_close(ours.float(), theirs, atol=0.05, rtol=0)


def test_clip_features_are_a_metrics_features(clip):
    features = features_of(clip)
    assert isinstance(features, Features)
    assert isinstance(features, TextAndImageFeatures)
    assert features(pictures(32, 32)).shape == (4, features.width) == (4, 16)
    assert features.name.startswith("tiny-")
    assert features.name.endswith("/bicubic-shortest-32")
    other = new_clip(
        16,
        {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32},
        {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    assert features_of(other).name != features.name


def test_a_picture_in_memory_has_the_features_of_its_png(clip):
    features = features_of(clip)
    exact = pictures(32, 32) + 0.003 * torch.rand(4, 3, 32, 32)
    from_png = to_bytes(exact).float() / 127.5 - 1
    assert torch.equal(features(exact), features(from_png))


def test_several_metrics_cost_one_pass(clip):
    features = features_of(clip)
    calls = []
    features.model.visual.register_forward_hook(lambda *_: calls.append(1))
    images = pictures(32, 32)
    first = features(images).clone()
    CLIPScore(features).update(images, CAPTIONS)
    CLIPScore(features).update(images, CAPTIONS)
    assert len(calls) == 1
    images.neg_()  # changed in place: not the same pictures any more
    assert not torch.equal(features(images), first)
    with torch.inference_mode():
        hidden = pictures(32, 32)
        kept = features(hidden).clone()
        assert not torch.equal(features(hidden.neg_()), kept)


def test_features_ignore_autocast(clip):
    features = features_of(clip)
    plain = features(pictures(32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(pictures(32, 32)), plain)


@pytest.fixture(scope="module")
def transformers_clip(tmp_path_factory):
    """A tiny random CLIP in transformers' format, with CLIP's own byte pairs."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny_clip")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"bos_token_id": 49406, "eos_token_id": 49407},
        vision_config=small | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    pairs = open_clip.SimpleTokenizer()
    vocabulary = dict(pairs.encoder)
    for theirs, ours in {
        "<start_of_text>": "<|startoftext|>",
        "<end_of_text>": "<|endoftext|>",
    }.items():
        vocabulary[ours] = vocabulary.pop(theirs)
    CLIPTokenizer(vocab=vocabulary, merges=list(pairs.bpe_ranks)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(32, 32), (50, 70)])
def test_clip_score_is_transformers_own(transformers_clip, size):
    from transformers import CLIPModel, CLIPProcessor

    images = pictures(*size)
    processor = CLIPProcessor.from_pretrained(transformers_clip)
    model = CLIPModel.from_pretrained(transformers_clip).eval()
    inputs = processor(
        text=CAPTIONS,
        images=[as_pil(image) for image in images],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=77,
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image / model.logit_scale.exp()
    ours = clip_scores(TransformersClipFeatures(str(transformers_clip)), images, CAPTIONS)
    theirs = 100 * logits.diag().clamp(min=0)
    assert theirs.max() > 1
    torch.testing.assert_close(ours.float(), theirs, atol=0.05, rtol=0)


def test_a_clip_is_read_in_the_format_that_it_has(clip, transformers_clip, tmp_path):
    theirs = clip_features(str(transformers_clip))
    assert isinstance(theirs, TransformersClipFeatures)
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    save_clip(tmp_path, clip.model, {"embed_dim": 16, "vision": vision, "text": text})
    ours = clip_features(str(tmp_path))
    assert isinstance(ours, ClipFeatures)
    images = pictures(32, 32)  # its file holds half precision
    torch.testing.assert_close(ours(images), features_of(clip)(images), atol=0.02, rtol=0.02)
    with pytest.raises(FileNotFoundError):
        clip_features(str(tmp_path / "nowhere"))


def test_dinov2_is_transformers_own(tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    processor = BitImageProcessor(
        size={"height": 224, "width": 224}, do_center_crop=False, do_convert_rgb=True
    )
    processor.image_mean, processor.image_std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    images = pictures(64, 64)
    inputs = processor([as_pil(image) for image in images], return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state[:, 0]
    features = Dinov2Features(str(tmp_path / "dino"))
    assert features.width == 32
    assert features.name.startswith("dino-")
    torch.testing.assert_close(features(images), theirs, atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", [TransformersClipFeatures, Dinov2Features])
def test_missing_weights_say_which_file_goes_where(tmp_path, kind):
    with pytest.raises(ValueError, match=r"no .* model in .*config.json.* or name another folder"):
        kind(str(tmp_path))


def test_crop_takes_the_middle():
    images = torch.zeros(1, 3, 32, 64) - 1
    images[..., 16:48] = 1
    assert shortest_and_crop(images, 32).min() == 255

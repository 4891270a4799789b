"""Pictures of every kind, against Pillow's and NumPy's own arithmetic."""

import io
import resource

import numpy as np
import pytest
from PIL import Image as Picture
from shard_files import encoded, picture, sample, write_tar
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio

from ldm.data import Keep, ShardData
from ldm.data.decode import Decoder, colour_of
from ldm.data.order import Rows

WHITE = Decoder((255, 255, 255), 64_000_000)
CENTRE = (0.5, 0.5)
PHOTO = photographs.astronaut()[:256, :256]


def file_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(raw, shape=(16, 16), decoder=WHITE, where=CENTRE):
    return decoder(raw, shape, where)[0]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_what_pillow_decodes(subsampling, progressive):
    raw = encoded(PHOTO, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decoded(raw, (256, 256)), Picture.open(io.BytesIO(raw)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_keep_their_pixels(kind):
    np.testing.assert_array_equal(decoded(encoded(picture(5), kind)), picture(5))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    image = Picture.fromarray(PHOTO).convert(mode)
    raw = file_of(image, kind)
    wanted = np.asarray(Picture.open(io.BytesIO(raw)).convert("RGB"))
    np.testing.assert_array_equal(decoded(raw, (256, 256)), wanted)


def test_a_cmyk_jpeg_keeps_its_colours():
    raw = file_of(Picture.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=95)
    assert peak_signal_noise_ratio(PHOTO, decoded(raw, (256, 256))) > 30


def test_sixteen_bits_are_scaled_not_clipped():
    """A ramp over all 16 bits becomes a ramp over all 8: v / 65535 * 255."""
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = decoded(file_of(Picture.fromarray(values), "PNG"))
    wanted = np.rint(values / 65535 * 255)
    np.testing.assert_array_equal(pixels[..., 1], wanted)


def test_floating_point_pixels_are_scaled_or_refused():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels = decoded(file_of(Picture.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[..., 0], np.rint(values * 255))
    for wrong in (values * 2, values - 0.5, values * np.nan):
        with pytest.raises(ValueError, match=r"they must be in \[0, 1\]"):
            decoded(file_of(Picture.fromarray(wrong.astype(np.float32)), "TIFF"))
    with pytest.raises(ValueError, match="no stated range"):
        decoded(file_of(Picture.fromarray(values.astype(np.int32)), "TIFF"))


@pytest.mark.parametrize("background", ["white", "#102030"])
def test_what_is_clear_shows_the_background(background):
    """a * colour + (1 - a) * background, for RGBA, LA and a palette's clear entry."""
    ground = np.array(colour_of(background))
    decoder = Decoder(colour_of(background), 10**6)
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.dstack([picture(3), alpha])
    wanted = picture(3) * (alpha[..., None] / 255) + ground * (1 - alpha[..., None] / 255)
    np.testing.assert_allclose(decoded(encoded(rgba), decoder=decoder), wanted, atol=1)
    grey = np.dstack([picture(3)[..., 0], alpha])
    wanted = grey[..., :1] * (alpha[..., None] / 255) + ground * (1 - alpha[..., None] / 255)
    np.testing.assert_allclose(decoded(encoded(grey), decoder=decoder), wanted, atol=1)
    palette = Picture.new("P", (16, 16), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    palette.putpixel((0, 0), 1)
    pixels = decoded(file_of(palette, "PNG", transparency=0), decoder=decoder)
    np.testing.assert_array_equal(pixels[0, 0], [200, 0, 0])
    np.testing.assert_array_equal(pixels[1, 1], ground)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_camera_that_was_turned(turn, kind):
    """Each EXIF orientation is undone; by the standard's table of stored rows and columns."""
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:24, :16] = 255  # white at the top left, and taller than wide
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[turn]
    image = Picture.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = turn
    raw = file_of(image, kind, exif=exif)
    pixels, window = WHITE(raw, (48, 32), CENTRE)
    assert window.original == (48, 32)
    assert (pixels[:22, :14] > 250).all()
    assert (pixels[26:] < 5).all()
    assert (pixels[:, 18:] < 5).all()


def test_of_an_animation_the_first_frame_counts():
    frames = [Picture.fromarray(picture(n)) for n in range(3)]
    raw = file_of(frames[0], "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(raw), picture(0))


@pytest.mark.parametrize("size", [100, 200, 333])
def test_resizing_agrees_with_pillow(size):
    """Bicubic with antialiasing, within two of 255 levels."""
    wanted = Picture.fromarray(PHOTO).resize((size, size), Picture.Resampling.BICUBIC)
    difference = decoded(encoded(PHOTO), (size, size)).astype(int) - np.asarray(wanted)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("shrink", [2, 3, 4.4, 9])
def test_a_large_jpeg_scaled_while_decoding_is_as_good(shrink):
    """Against decoding it whole and shrinking it with Pillow; 33 dB are hard to see."""
    size = round(512 / shrink)
    raw = encoded(photographs.astronaut(), "JPEG", quality=90)
    whole = Picture.open(io.BytesIO(raw)).resize((size, size), Picture.Resampling.BICUBIC)
    pixels, window = WHITE(raw, (size, size), CENTRE)
    assert peak_signal_noise_ratio(np.asarray(whole), pixels) > 33
    assert window.original == (512, 512)


@pytest.mark.parametrize(("where", "left"), [((0.0, 0.0), 0), ((0.0, 0.5), 8), ((0.0, 0.999), 16)])
def test_a_window_is_cut_where_it_is_asked_for(where, left):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    got, window = WHITE(encoded(pixels), (16, 16), where)
    np.testing.assert_array_equal(got, pixels[:, left : left + 16])
    assert window.corner == (0, left)
    assert window.original == (16, 32)


def test_a_constant_picture_stays_constant_at_any_size():
    for shape in [(1, 1), (1, 300), (300, 1), (97, 53), (16, 16), (500, 700)]:
        pixels = decoded(encoded(np.full((*shape, 3), 77, np.uint8)), (24, 40))
        assert pixels.shape == (24, 40, 3)
        assert (pixels == 77).all()


def test_random_crops_reach_all_of_the_picture(tmp_path):
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (16, 64, 3))
    path = write_tar(tmp_path / "x.tar", [("a.png", encoded(ramp)), ("a.txt", b"ramp")])
    data = ShardData(str(path), 16, crop="random")
    rows = Rows(np.zeros(300, np.int64), np.arange(300), seed=1)
    batch, _ = data.read(rows)
    left = batch["corner"][:, 1].numpy()
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0].numpy(), left * 4)
    assert (left.min(), left.max()) == (0, 48)
    assert abs(left.mean() - 24) < 4 * 14 / 300**0.5
    assert (batch["original"].numpy() == [16, 64]).all()


def test_a_bomb_is_refused_by_its_header(tmp_path):
    """Row 12: 17 kB that would be 144 million pixels; the memory stays what it was."""
    image = Picture.new("1", (12_000, 12_000))
    bomb = file_of(image, "PNG")
    del image
    assert len(bomb) < 40_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((ValueError, Picture.DecompressionBombWarning)):
        decoded(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB
    with pytest.raises(ValueError, match=r"9000x9000 has more pixels than max_pixels"):
        decoded(file_of(Picture.new("1", (9000, 9000)), "PNG"))


def test_one_of_several_captions_is_drawn_by_its_weight(tmp_path):
    members = [("a.png", encoded(picture(1))), ("a.txt", b"plain")]
    members += [("a.json", b'{"long": "long one", "short": "short one"}'), *sample(2)]
    path = str(write_tar(tmp_path / "x.tar", members))
    data = ShardData(path, 16, captions={"txt": 1.0, "long": 2.0, "short": 1.0})
    batch, _ = data.read(Rows(np.zeros(800, np.int64), np.arange(800), seed=0))
    shares = [batch["caption"].count(text) / 800 for text in ("plain", "long one", "short one")]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=4 * (0.25 / 800) ** 0.5)
    with pytest.raises(ValueError, match=r"captions names 'lnog'.*holds long, short; name one of"):
        ShardData(path, 16, captions={"txt": 1.0, "lnog": 2.0})
    batch, _ = data.read(Rows(np.ones(20, np.int64), np.arange(20), seed=0))
    assert set(batch["caption"]) == {"number 2"}  # it has no JSON: its default caption
    with pytest.raises(ValueError, match="set weights of at least 0"):
        ShardData(path, 16, captions={"txt": 0.0})


def test_samples_are_chosen_by_scores_in_their_json(tmp_path):
    members = []
    for number, score in enumerate(["4.5", "6", "NaN", '"7"', "null"]):
        key = f"{number:06d}"
        record = f'{{"caption": "x", "aesthetic": {score}}}'.encode()
        members += [(f"{key}.png", encoded(picture(number))), (f"{key}.json", record)]
    path = str(write_tar(tmp_path / "x.tar", members))
    data = ShardData(path, 16, keep=Keep(scores={"aesthetic": 5.0}))
    assert [data.set.key(data.set.place(n)) for n in range(len(data))] == ["000001"]


@pytest.mark.parametrize("options", [{"size": 0}, {"background": "clear sky"}])
def test_settings_that_cannot_work_are_refused(shards, options):
    with pytest.raises(ValueError, match="set"):
        ShardData(shards, **({"size": 8} | options))

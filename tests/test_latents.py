"""data/vae.py and data/latents.py: what is cached on disk and when it is encoded again; both
sources agree."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from helpers import TINY, flags, run_train, tiny_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from eqdiff.base.load import Base, load_base
from eqdiff.batch import Latents, draw_batch, draw_timesteps
from eqdiff.data.latents import Posterior, prepare, prepare_live
from eqdiff.data.subject import Subject, load_subject
from eqdiff.data.vae import cached_encoder, vae_encoder, vae_key
from eqdiff.frequency import Band
from eqdiff.training.build import load_data

SOURCES = ("cached", "live")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 2, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=generator(seed)) * 2 - 1


class Counted:
    """An encoder that counts its calls."""

    def __init__(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.encode, self.calls = encode, 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.encode(images)


def pooled(images: Tensor, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """A stand-in for the VAE that can be seen through: the means of 8 x 8 pixels, three colours and
    their mean."""
    cells = F.avg_pool2d(images, 8)
    mean = torch.cat([cells, cells.mean(1, keepdim=True)], 1)
    return mean, torch.full_like(mean, spread)


@pytest.fixture
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


@pytest.fixture
def photos(tiny_subject: Path) -> Subject:
    return load_subject(tiny_subject, class_word="dog toy", resolution=64)


def plain_photos(n: int) -> Subject:
    """Photo i is of the grey i / n: a latent of `pooled` tells which it is."""
    grey = torch.arange(n).reshape(n, 1, 1, 1) / n
    names = tuple(f"{i}.png" for i in range(n))
    return Subject(grey.expand(n, 3, 16, 16).contiguous(), torch.ones(n, 1, 16, 16), names, "box")


def source(
    kind: str, subject: Subject, classes: Tensor | None, config: Any, encode: Any
) -> Latents:
    if kind == "live":
        return prepare_live(subject, classes, config, encode)
    return prepare(subject, classes, config, encode, generator(1))


def tensors_of(value: Any) -> Iterator[Tensor]:
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        yield from tensors_of(part) if isinstance(part, Posterior) else [part]


# --- the files ---


def test_the_next_run_never_asks_the_vae_and_gets_the_same_bits(
    base: Base, photos: Subject, tmp_path: Path
) -> None:
    config, classes = tiny_config(tmp_path, tmp_path, filter_prior=True), pictures(3, 64)
    found, calls = [], []
    for _ in range(2):
        asked = Counted(vae_encoder(base.vae))
        cached = cached_encoder(asked, tmp_path / "latents", vae_key(base.vae))
        found.append(prepare(photos, classes, config, cached, generator()))
        calls.append(asked.calls)
    found.append(prepare(photos, classes, config, vae_encoder(base.vae), generator()))
    assert calls == [8, 0]  # three bands of photos and of class images, the pool, the copies
    for first, again, plain in zip(*map(tensors_of, found), strict=True):
        assert torch.equal(first, again)
        assert first.stride() == again.stride()  # or the same training rounds otherwise
        assert torch.equal(first, plain)


def test_the_files_are_safetensors_and_nothing_else(base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "latents"
    mean, std = cached_encoder(vae_encoder(base.vae), folder, "mark")(pictures())
    (file,) = folder.iterdir()
    assert file.suffix == ".safetensors"
    assert len(bytes.fromhex(file.stem)) == 32
    kept = load_file(file)
    assert set(kept) == {"mean", "std"}
    assert torch.equal(kept["mean"], mean)
    assert torch.equal(kept["std"], std)


@pytest.mark.parametrize("what", ["pixel", "weight", "precision", "scale", "resolution", "shape"])
def test_whatever_the_answer_depends_on_makes_a_new_file(
    base: Base, tmp_path: Path, what: str
) -> None:
    vae, before, side = base.vae, pictures(), 32
    cached_encoder(vae_encoder(vae), tmp_path, vae_key(vae))(before)
    after = pictures(side=64) if what == "resolution" else before.clone()
    if what == "pixel":
        after[1, 2, 5, 7] += 1e-3
    elif what == "weight":
        vae.encoder.conv_in.bias.data[0] += 0.1
    elif what == "precision":
        vae.to(torch.bfloat16)
    elif what == "scale":
        vae.register_to_config(scaling_factor=1.0)
    elif what == "shape":  # the same bytes
        after = before.reshape(2, 3, side * 2, side // 2)
    asked = Counted(vae_encoder(vae))
    cached_encoder(asked, tmp_path, vae_key(vae))(after)
    assert asked.calls == 1
    cached_encoder(asked, tmp_path, vae_key(vae))(after)
    assert asked.calls == 1


@pytest.mark.parametrize(
    "damage", ["short", "empty", "text", "half", "count", "spread", "precision"]
)
def test_a_file_that_is_torn_or_does_not_fit_is_made_again(tmp_path: Path, damage: str) -> None:
    asked = Counted(pooled)
    cached = cached_encoder(asked, tmp_path, "mark")
    right = cached(pictures())
    (file,) = tmp_path.iterdir()
    mean, std = right
    content = file.read_bytes()
    if damage in ("short", "empty", "text"):
        file.write_bytes({"short": content[:-9], "empty": b"", "text": b"not this"}[damage])
    else:
        wrong = {"half": {"mean": mean}, "count": {"mean": mean[:1], "std": std[:1]}}
        wrong |= {
            "spread": {"mean": mean, "std": std[..., :1]},
            "precision": {"mean": mean.half(), "std": std.half()},
        }
        save_file({name: value.contiguous() for name, value in wrong[damage].items()}, file)
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip(cached(pictures()), right, strict=True))
        assert asked.calls == 2
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [content]


def test_a_folder_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cached = cached_encoder(pooled, tmp_path / "file" / "latents", "mark")
    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            assert torch.equal(cached(pictures(seed=seed))[0], pooled(pictures(seed=seed))[0])
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.text


def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert torch.equal(
        cached_encoder(pooled, tmp_path, "mark")(pictures())[0], pooled(pictures())[0]
    )
    assert not list(tmp_path.iterdir())


# --- the two sources ---


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_with_one_generator_both_sources_differ_in_references_alone(
    base: Base, photos: Subject, preset: str
) -> None:
    config = tiny_config(
        Path(), Path(), preset=preset, band_probs=(0.4, 0.3, 0.3), train_batch_size=24
    )
    encode, classes = vae_encoder(base.vae), pictures(3, 64)
    cached, live = (source(kind, photos, classes, config, encode) for kind in SOURCES)
    assert torch.allclose(cached.photo_means, live.photo_means, atol=1e-5)
    one, two = (vars(draw_batch(latents, config, 1000, generator(3))) for latents in (cached, live))
    assert set(one["bands"][:24].tolist()) == set(Band)
    for name in set(one) - {"z_r", "mask_r", "noise_r", "t_r"}:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    for name in ("noise_r", "t_r"):
        assert torch.equal(one[name], two[name]), name
    assert one["z_r"].shape == two["z_r"].shape
    assert one["mask_r"].shape == two["mask_r"].shape


@pytest.mark.parametrize("kind", SOURCES)
def test_a_band_is_the_filtered_photo_and_each_draw_has_noise_of_its_own(
    base: Base, photos: Subject, kind: str
) -> None:
    latents = source(
        kind, photos, None, tiny_config(Path(), Path(), low_cutoff=4.0), vae_encoder(base.vae)
    )
    assert latents.class_count == 0
    draws = {
        band: latents.target(torch.tensor([1, 1]), torch.tensor([band] * 2), generator())
        for band in Band
    }
    assert len({float(z.sum()) for z in draws.values()}) == 3
    assert all(not torch.equal(z[0], z[1]) for z in draws.values())


@pytest.mark.parametrize("kind", SOURCES)
def test_references_come_from_the_other_photos_each_as_often(kind: str) -> None:
    """Also where the pool holds more copies of one photo than of the others."""
    subject = plain_photos(4)
    settings = dict(
        reference_augmentation="none", reference_pool=5, train_batch_size=100, fdte=False
    )
    config = tiny_config(Path(), Path(), **settings)
    latents = source(kind, subject, None, config, pooled)
    counts = torch.zeros(4, 4)
    for seed in range(40):
        batch = draw_batch(latents, config, 1000, generator(seed))
        target, reference = ((z[:, 0, 0, 0] * 4).round().long() for z in (batch.z0, batch.z_r))
        counts.index_put_((target, reference), torch.ones(100), accumulate=True)
    shares = counts / counts.sum(
        1, keepdim=True
    )  # of about 1000 draws a row: 0.015 is one standard deviation
    assert (shares.diagonal() == 0).all()
    assert (shares + torch.eye(4) / 3 - 1 / 3).abs().max() < 0.06


@pytest.mark.parametrize("kind", SOURCES)
def test_a_single_photo_is_its_own_reference(kind: str) -> None:
    config = tiny_config(Path(), Path(), reference_augmentation="none")
    latents = source(kind, plain_photos(1), None, config, pooled)
    batch = draw_batch(latents, config, 1000, generator())
    assert torch.equal(batch.z_r, latents.photo_means.expand_as(batch.z_r))


def test_the_pool_is_drawn_from_evenly_and_live_references_are_new_every_time(
    photos: Subject,
) -> None:
    config, photo = tiny_config(Path(), Path(), reference_pool=20), torch.full((100,), 2)
    seen = {}
    for kind in SOURCES:
        latents, draws = source(kind, photos, None, config, pooled), generator()
        z_r = torch.cat([latents.reference(photo, draws)[0] for _ in range(3)])
        assert torch.equal(z_r[:100], latents.reference(photo, generator())[0])
        seen[kind] = z_r.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(seen["cached"]) == 5  # of four photos, twenty copies
    assert 35 < seen["cached"].min() <= seen["cached"].max() < 90  # 60, give or take 7
    assert len(seen["live"]) == 300


@pytest.mark.parametrize("of", ["photos", "classes"])
def test_references_of_both_sources_have_the_same_mean_and_spread(photos: Subject, of: str) -> None:
    """Cell by cell. N draws of P different pictures: the mean is off by a spread times (1/N +
    1/P)^0.5."""
    count, copies = 1000, 200
    classes = photos.images.repeat_interleave(copies // 4, 0)
    config = tiny_config(Path(), Path(), reference_pool=copies)
    index = torch.randint(4 if of == "photos" else copies, (count,), generator=generator())
    means, spreads = [], []
    for kind in SOURCES:
        latents = source(kind, photos, classes, config, lambda images: pooled(images, 0.05))
        if of == "photos":
            z_r, mask_r = latents.reference(index, generator(1))
            drawn = torch.cat([z_r, mask_r], 1)
        else:
            drawn = latents.class_reference(index, generator(1))
        means.append(drawn.mean(0))
        spreads.append(drawn.std(0))
    spread = (
        spreads[0].square().mean((1, 2), keepdim=True) / 2
        + spreads[1].square().mean((1, 2), keepdim=True) / 2
    ).sqrt()
    off = (1 / count + 1 / copies) ** 0.5
    assert spread.min() > 0.06
    assert ((means[0] - means[1]).abs() / spread).max() < 5 * off
    assert abs(float(spreads[0].mean() / spreads[1].mean()) - 1) < 0.1


# --- where a training gets them ---


@pytest.mark.parametrize("wanted", [2, 3, 5])
def test_several_references_of_a_sample_are_different_photos_one_after_another(wanted: int) -> None:
    settings = dict(
        reference_augmentation="none", reference_pool=8, train_batch_size=50, fdte=False
    )
    config = tiny_config(Path(), Path(), num_references=wanted, **settings)
    latents = prepare(plain_photos(4), None, config, pooled, generator(0))
    batch = draw_batch(latents, config, 1000, generator(1))
    assert len(batch.z_r) == len(batch.noise_r) == len(batch.mask_r) == 50 * wanted
    assert torch.equal(batch.t_r, batch.t.repeat_interleave(wanted))
    target, references = ((z[:, 0, 0, 0] * 4).round().long() for z in (batch.z0, batch.z_r))
    for photo, others in zip(target.tolist(), references.view(50, wanted).tolist(), strict=True):
        assert photo not in others
        assert len(set(others)) == min(wanted, 3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "cache" / "latents"


def test_one_process_encodes_and_the_others_wait(
    base: Base, tiny_subject: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextlib.contextmanager
    def first() -> Iterator[None]:
        events.append("in")
        yield
        events.append("out")

    plain = base.vae.encode
    monkeypatch.setattr(base.vae, "encode", lambda x: events.append("vae") or plain(x))
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu"), is_main_process=True, main_process_first=first
    )
    given = {"output_dir": str(tmp_path), "with_prior_preservation": False, "auto_masks": False}
    config = tiny_config(tmp_path, tiny_subject, **given)
    load_data(config, base, accelerator)
    assert (events[0], events[-1], set(events[1:-1])) == ("in", "out", {"vae"})
    assert len(list(cache.iterdir())) == 4


def test_the_live_vae_stays_in_full_precision_within_a_step(
    base: Base, tiny_subject: Path, cache: Path, tmp_path: Path
) -> None:
    draws = []
    accelerator: Any = SimpleNamespace(
        device=torch.device("cpu"),
        is_main_process=True,
        main_process_first=contextlib.nullcontext,
        autocast=contextlib.nullcontext,
    )
    for kept in (True, False):
        config = tiny_config(
            tmp_path, tiny_subject, output_dir=str(tmp_path), latent_cache=kept, num_class_images=1
        )
        latents, references, *_ = load_data(config, base, accelerator)
        assert torch.equal(references.latents, latents.photo_means)
        base.vae.to(torch.bfloat16)  # what a run on a GPU does to the model's
        with torch.autocast("cpu", torch.bfloat16):
            draws.append(latents.target(torch.arange(4), torch.tensor([0, 1, 2, 2]), generator()))
        base.vae = load_base(base.name).vae
    assert torch.allclose(*draws, atol=1e-5)


def test_training_runs_from_the_cache_a_second_time_and_without_it(
    tiny_base: Path,
    tiny_subject: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    plain = AutoencoderKL.encode
    monkeypatch.setattr(
        AutoencoderKL, "encode", lambda vae, x, **more: asked.append(1) or plain(vae, x, **more)
    )
    given = {
        "pretrained_model_name_or_path": tiny_base,
        "instance_data_dir": tiny_subject,
        "class_word": "dog toy",
    }

    def run(name: str, *more: str) -> int:
        asked.clear()
        torch.manual_seed(0)  # new layers start from the global state
        out = tmp_path / name
        run_train([*flags({**TINY, **given, "output_dir": out, "max_train_steps": 2}), *more])
        assert (out / "concept.safetensors").is_file()
        return len(asked)

    assert (
        run("live", "--no_latent_cache") >= 1 + 2 * 4
    )  # the photos; in a step photos, class images and references
    assert not cache.exists()
    assert run("first") > 0
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert run("second") == 0
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == made
    assert {path.suffix for path in made} == {".safetensors"}
    first, second = (
        load_file(tmp_path / name / "concept.safetensors") for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_share_of_the_timesteps_falls_into_the_noisiest_quarter_and_none_changes_no_bit() -> None:
    def draws(share: float) -> Tensor:
        return draw_timesteps(4000, 1000, share, torch.Generator().manual_seed(1))

    assert torch.equal(
        draws(0.0), torch.randint(1000, (4000,), generator=torch.Generator().manual_seed(1))
    )
    for share in (0.0, 0.4, 1.0):
        t = draws(share)
        assert float((t >= 750).float().mean()) == pytest.approx(share + (1 - share) / 4, abs=0.03)
        assert 0 <= int(t.min()) and int(t.max()) <= 999
    assert set(draws(1.0).tolist()) == set(range(750, 1000))

"""Around each call of the UNet while an image is drawn: the reference (Sec. 4.3), others' doors.

A method's `SamplingStep` stands around each call of the UNet. A `SamplingOption` works over the
concepts of any method: it makes such steps for one call of the pipeline, a `Drawing`.

The paper does not say which half of guidance sees the reference. As in the release both do; the
conditional half alone is a choice.

Axes: B rows of a UNet call, R references looked at side by side, h, w latent size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from eqdiff.context import ReferenceContext
from eqdiff.errors import require
from eqdiff.reference import ReferenceSchedule

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class SamplingStep:
    """What a method does around each call of the UNet.

    Both doors are torch's forward hooks: None changes nothing. A step may add rows to the call in
    `before` and take them out of the output in `after`. What it needs between the two, and from
    step to step, it keeps in itself: a new one is made for each call of the pipeline.
    """

    def before(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs] | None:
        """The arguments of the UNet call, changed."""

    def after(self, unet: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """The output of the UNet call, changed."""

    def within(self, unet: nn.Module) -> AbstractContextManager[None]:
        """What holds during the whole call of the pipeline, such as guests in layers."""
        return nullcontext()


@dataclass(frozen=True)
class Drawing:
    """One call of the pipeline with a concept, as an option sees it before the first step.

    pipe: the pipeline; its scheduler has this call's timesteps once the UNet is called. carried:
    the concept in it (`Carried`). given: the call's arguments by name, with all sizes. seeds: one
    an image. attending: the layers with RRA in this call. reference_for: the halves of guidance
    that have it. photos: as the call's `reference`. cache_gb: memory for what is kept over the
    steps [GB].
    """

    pipe: Any
    carried: Any
    given: Mapping[str, Any]
    seeds: tuple[int, ...]
    attending: frozenset[str]
    reference_for: str
    photos: int | Sequence[int]
    cache_gb: float

    @property
    def prompts(self) -> list[str]:
        """The prompt of each image. Raises UserError if the call has embeddings in their place."""
        prompt = self.given.get("prompt")
        require(prompt is not None, "this option reads prompts: give them, not prompt_embeds")
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        return [text for text in texts for _ in range(len(self.seeds) // len(texts))]

    @property
    def cells(self) -> tuple[int, int]:
        """h and w of the latents."""
        factor = self.pipe.vae_scale_factor
        return self.given["height"] // factor, self.given["width"] // factor


class SamplingOption:
    """Something that is done while an image is drawn, whatever method the concept is of.

    It may be used for any number of drawings: what belongs to one is kept in the steps.
    """

    def check(self, carried: Any, prompts: Sequence[str], attending: frozenset[str]) -> None:
        """Raises UserError if the concept, or one of the prompts, cannot be drawn with it.

        attending: the layers that are going to attend to a photo by RRA.
        """

    def steps(self, drawing: Drawing) -> Sequence[SamplingStep]:
        """New steps for this drawing. Raises UserError if it cannot be drawn with this option."""
        return ()


@contextmanager
def around(unet: nn.Module, steps: Sequence[SamplingStep]) -> Iterator[None]:
    """Within: every call of `unet` passes through `steps`, and its output in reverse order."""
    with ExitStack() as hooks:
        for step in steps:
            hooks.enter_context(step.within(unet))
        for step in steps:
            hook = unet.register_forward_pre_hook(step.before, with_kwargs=True)
            hooks.callback(hook.remove)
        for step in reversed(steps):
            hook = unet.register_forward_hook(step.after, with_kwargs=True)
            hooks.callback(hook.remove)
        yield


@contextmanager
def one_by_one(vae: Any, wanted: bool) -> Iterator[None]:
    """Within: the VAE decodes images one after the other, if that is wanted or was set before."""
    if not wanted or getattr(vae, "use_slicing", True):
        yield
        return

    vae.enable_slicing()
    try:
        yield
    finally:
        vae.disable_slicing()


def sample_and_time(args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor]:
    """z (B,4,h,w) and t of a UNet call, however the two were passed."""
    z = args[0] if args else kwargs["sample"]
    t = args[1] if len(args) > 1 else kwargs["timestep"]
    return z, t


class ReferenceStep(SamplingStep):
    """Puts F^r at the timestep of this very call into the context that the processors read.

    The rule: guided calls are [uncond..., cond...]. Both halves see the reference, the first under
    the empty text and the second under the reference's own, or the conditional half alone does.
    Unguided calls see it under the reference's own text.
    """

    def __init__(
        self,
        context: ReferenceContext,
        look: Callable[[], ReferenceSchedule] | None,
        window: tuple[float, float],
        halves: Callable[[], int],
    ) -> None:
        """What is asked when the UNet is called, for the caller's callbacks may change it:
            look: gives F^r over the timesteps of this drawing; asked at the first call. None looks
                at no reference
            halves: 2 if the call is a guided one, else 1

        window: from here to there [share of the steps].
        """
        self.context = context
        self.look = look
        self.window = window
        self.halves = halves
        self._schedule: ReferenceSchedule | None = None

    def before(self, unet: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Changes the context alone."""
        z, t = sample_and_time(args, kwargs)
        self.context.features = {}
        if self.look is None:
            return
        if self._schedule is None:
            self._schedule = self.look()

        schedule = self._schedule
        first, last = self.window
        if not first <= schedule.progress(t) < last:
            return

        features = schedule.features(t)
        count = schedule.count
        texts = len(next(iter(features.values()))) // count
        halves = self.halves()
        rows = min(halves, texts)

        # what to look at: the last `rows` texts, each with `count` references
        self.context.features = {site: x[-rows * count :] for site, x in features.items()}
        self.context.count = count

        # who looks: the last `rows` halves of the call
        self.context.samples = len(z) // halves * rows
        self.context.first = len(z) - self.context.samples

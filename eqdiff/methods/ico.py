"""ICO (arXiv 2412.04831): while it trains, each photo has words of its own round the subject.

A written caption makes the subject's tokens learn what it does not say about this photo. So each
photo gets its own copy of the caption's words, learned and thrown away afterwards. The subject is q
task tokens and the class noun, which stays as it is. Trained are the tasks, the contexts, and
whatever else the settings train: K and V of cross-attention, or all of EqDiff.

The first task token is EqDiff's: S_LF, S_HF or their sum by the band (Eq. 5). The contexts start
from the words of `instance_prompt`, so that at first the caption is the plain one, bit for bit.

Only the abstract, a figure and the release are known to us. Ours: position embeddings are added
after the caption is assembled. The release adds them before: its tasks and noun keep the positions
that they have alone, from 1, and so does the closing context (`context_positions` release); those
of start, end and padding are not known to us and are the true ones. Class images have the caption
of `class_prompt`, or the lines of `class_prompts` in turn; the release retrieves pictures with
their own.

Axes: B batch, N text tokens, D text width, n photos, q task tokens, P words of a context.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from eqdiff.base.load import Base
from eqdiff.batch import Batch
from eqdiff.errors import require
from eqdiff.method import Method
from eqdiff.model import Customized, EqDiff
from eqdiff.objective import Objective
from eqdiff.reader import Places, PromptReader
from eqdiff.settings.groups import Losses, Recipe
from eqdiff.settings.train import TrainConfig
from eqdiff.start import mean_rows, start_vectors
from eqdiff.tokens import PLACEHOLDER, SubjectTokens, encode, find_columns

RARE = ("ktn", "pll", "ucd</w>")  # the release's, 42170, 47629 and 43514 of CLIP's vocabulary


class TaskTokens(SubjectTokens):
    """The subject's q embeddings: the band's, then those that are the same in every band."""

    def __init__(self, rows: Tensor, rest: Tensor) -> None:
        """rows: (R,D) as for `SubjectTokens`. rest: (q - 1, D)."""
        super().__init__(rows)
        self.rest = nn.Parameter(rest.detach().clone())

    def forward(self, bands: Tensor) -> Tensor:
        """bands (B,) of Band -> embeddings (B,q,D)."""
        first = super().forward(bands)[:, None]  # (B,1,D)
        return torch.cat([first, self.rest.expand(len(bands), -1, -1)], dim=1)


class TaskReader(PromptReader):
    """Reads {} as q placeholders and the class word."""

    def read(self, prompts: list[str], class_word: str) -> tuple[Tensor, Tensor]:
        return super().read(prompts, self._behind_the_first(class_word))

    def placeholders(self, prompts: list[str], class_word: str) -> Tensor:
        return super().placeholders(prompts, self._behind_the_first(class_word))

    def _behind_the_first(self, class_word: str) -> str:
        return f"{PLACEHOLDER} " * (self.recipe.task_tokens - 1) + class_word


class Ico(EqDiff):
    """EqDiff with q tokens for the subject."""

    def __init__(
        self, base: Base, recipe: Recipe, rows: Tensor, places: Places = MappingProxyType({})
    ) -> None:
        by_id = recipe.slot_by == "token_id"
        require(by_id, "--slot_by whitespace: not with --method ico, whose subject is many tokens")
        super().__init__(base, recipe, rows, places)

    def make_tokens(self, rows: Tensor) -> SubjectTokens:
        return TaskTokens(rows, rows.new_zeros(self.recipe.task_tokens - 1, rows.shape[1]))

    def make_reader(self, tokenizer: Any) -> PromptReader:
        return TaskReader(tokenizer, self.recipe)

    def start(self, base: Base, config: TrainConfig) -> None:
        """The tasks behind the first start from the release's next rare tokens or the class."""
        for place, row in enumerate(self.tokens.rest.data, start=1):
            vectors = start_vectors(base, config, RARE[min(place, len(RARE) - 1)])
            row.copy_(mean_rows(vectors, 1, config.token_init_scale)[0])

    def encode(
        self, ids: Tensor, slots: Tensor, bands: Tensor, clip_skip: int | None = None
    ) -> Tensor:
        """ids, slots (B,N), bands (B,) -> tau(y) (B,N,D)."""
        vectors = in_slots(self.tokens(bands), slots)
        return encode(self.text_encoder, self.injector, ids, slots, vectors, clip_skip)


def in_slots(tasks: Tensor, slots: Tensor) -> Tensor:
    """tasks (B,q,D) at slots (B,N) bool: (B,N,D), 0 elsewhere.

    Each run of slots takes them in turn; one longer than q takes the last one again.
    """
    number = torch.arange(slots.shape[1], device=slots.device)
    before = torch.where(slots, -1, number).cummax(1).values  # the last place that is no slot
    place = (number - before - 1).clamp(0, tasks.shape[1] - 1)  # (B,N)
    vectors = tasks.gather(1, place[..., None].expand(-1, -1, tasks.shape[2]).to(tasks.device))
    return torch.where(slots[..., None].to(tasks.device), vectors, 0)


class IcoObjective(Objective):
    """The captions of the photos have contexts, a row of them a photo."""

    def __init__(
        self, model: Customized, config: Losses, class_captions: Sequence[str] = ()
    ) -> None:
        """Raises UserError if the caption has no words to learn, or prefixes are put before it."""
        one = not config.size_prefixes
        require(one, "--size_prefixes: not with --method ico, whose captions are learned")
        super().__init__(model, config, class_captions)
        noun = model.tokenizer(config.class_word or "", add_special_tokens=False).input_ids
        self.noun = behind(self.slots[0], len(noun)) & find_columns(self.ids, noun)[0].to(
            self.slots.device
        )
        words = self.ids[0] != model.tokenizer.bos_token_id
        words &= (self.ids[0] == model.tokenizer.eos_token_id).cumsum(0) == 0
        self.words = words & ~self.slots[0] & ~self.noun  # (N,), the context's columns
        require(
            self.words.any(),
            f"--instance_prompt {config.instance_prompt!r}: --method ico needs words beside {{}}",
        )

    def make_aids(self, photos: int) -> dict[str, nn.Parameter]:
        """The contexts (n,P,D), which start from the caption's own words."""
        table = self.model.text_encoder.get_input_embeddings().weight.detach().float()
        words = table[self.ids[0, self.words].to(table.device)]
        self.contexts = nn.Parameter(words.repeat(photos, 1, 1))
        return {"contexts": self.contexts}

    def caption(self, batch: Batch) -> Tensor:
        """tau(y) with the contexts of each sample's photo, then of the class images: (B,N,D)."""
        model = self.model
        n = len(batch.caption)
        ids = self.ids[batch.caption]
        slots = self.slots[batch.caption]

        filled = in_slots(model.tokens(batch.bands[:n]), slots)
        filled = filled.index_put(
            (torch.arange(n, device=filled.device)[:, None], self.words.nonzero()[:, 0]),
            self.contexts[batch.photo].to(filled.dtype),
        )
        with model.injector.inject(slots | self.words, filled):
            text = model.text_encoder(ids, position_ids=self.positions()).last_hidden_state
        return torch.cat([text, self.class_caption(batch)])

    def positions(self) -> Tensor | None:
        """Position ids of the caption (1,N) as the release has them; None for the true ones."""
        if self.config.context_positions == "true":
            return None
        positions = torch.arange(len(self.words), device=self.words.device)
        subject = (self.slots[0] | self.noun).nonzero()[:, 0]
        positions[subject] = torch.arange(1, len(subject) + 1, device=positions.device)

        closing = self.words.nonzero()[:, 0]
        closing = closing[closing > subject[0]]
        positions[closing] = torch.arange(1, len(closing) + 1, device=positions.device)
        return positions[None]


def behind(slots: Tensor, count: int) -> Tensor:
    """The `count` columns behind each run of slots (...,N): bool (...,N)."""
    near = torch.zeros_like(slots)
    for step in range(1, count + 1):
        near[..., step:] |= slots[..., :-step]
    return near & ~slots


ICO = Method(Ico, IcoObjective)

"""Prompts as the text encoder reads them: token ids, and where the subject stands in them.

Axes: B batch, N text tokens.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eqdiff.errors import UserError
from eqdiff.settings.groups import Recipe
from eqdiff.settings.prompts import foreign_syntax, shown
from eqdiff.tokens import (
    PLACEHOLDER,
    add_placeholder,
    expand,
    find_slots,
    find_slots_by_whitespace,
    rare_ids,
    truncated_tails,
)

LOG = logging.getLogger(__name__)
# of several subjects: the name of a place in a prompt -> the subject's number, from 1, and its word
Places = Mapping[str, tuple[int, str]]


class PromptReader:
    """A base's tokenizer with one more word, the placeholder. The base's own stays as it is.

    What is added to the base's words later (by textual inversions) is read here too.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        self.base_tokenizer = tokenizer
        self.recipe = recipe
        self.slot_by = recipe.slot_by
        rare = rare_ids(tokenizer, recipe.rare_token)
        self.rare_token_id = next(iter(rare), 0)  # parity: see `find_slots_by_whitespace`
        self._reported: set[tuple[str, str]] = set()  # what was warned of, in which prompt
        self._take_words()

    def _take_words(self) -> None:
        """The base's words as they are now, and the placeholder."""
        self._added: dict[str, int] = self.base_tokenizer.get_added_vocab()
        self.tokenizer = copy.deepcopy(self.base_tokenizer)
        self.placeholder_id = add_placeholder(self.tokenizer)

    def read(self, prompts: list[str], class_word: str) -> tuple[Tensor, Tensor]:
        """Prompts, with {} for the subject or without a subject -> ids (B,N), slots (B,N) bool.

        It warns once about each prompt that is too long, or that is written for another program.
        Raises UserError if a subject is cut off.
        """
        if self.base_tokenizer.get_added_vocab() != self._added:
            self._take_words()

        texts, ids = self._encoded(prompts, class_word)
        slots = find_slots(ids, self.placeholder_id)

        if self.slot_by == "whitespace":
            ids = ids.masked_fill(slots, self.rare_token_id)
            slots = find_slots_by_whitespace(texts, PLACEHOLDER, ids.shape[1])

        self._report_truncation(texts, slots)
        self._report_syntax(prompts)
        return ids, slots

    def placeholders(self, prompts: list[str], class_word: str) -> Tensor:
        """Where the placeholder's own token stands, whatever `slot_by` says: bool (B,N)."""
        _, ids = self._encoded(prompts, class_word)
        return find_slots(ids, self.placeholder_id)

    def _encoded(self, prompts: list[str], class_word: str) -> tuple[list[str], Tensor]:
        """The prompts with the placeholder for {}, and their ids (B,N)."""
        texts = [expand(prompt, class_word) if "{}" in prompt else prompt for prompt in prompts]
        encoded = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return texts, encoded.input_ids

    def _report_truncation(self, texts: list[str], slots: Tensor) -> None:
        """Warns once about each text whose end is not read; slots (B,N) are those that are left.

        Raises UserError if a subject is not read.
        """
        length = slots.shape[1]
        tails = truncated_tails(self.tokenizer, texts, length)
        for text, has_slot, tail in zip(texts, slots.any(1), tails, strict=True):
            if PLACEHOLDER in tail.lower() or (PLACEHOLDER in text.lower() and not has_slot):
                raise UserError(
                    f"prompt {shown(text)}: a subject in it lies beyond the {length} tokens that "
                    "the base reads; put {} earlier or shorten the prompt"
                )
            if tail and ("long", text) not in self._reported:
                self._reported.add(("long", text))
                LOG.warning(
                    "prompt %s: beyond the %d tokens that the base reads, not seen: %s",
                    shown(text),
                    length,
                    tail,
                )

    def _report_syntax(self, prompts: list[str]) -> None:
        """Warns once about each prompt with parts that mean something in other programs alone."""
        for prompt in prompts:
            parts = foreign_syntax(prompt)
            if parts and ("foreign", prompt) not in self._reported:
                self._reported.add(("foreign", prompt))
                LOG.warning(
                    "prompt %s: the base reads %s as plain text; weights, choices and adapters "
                    "cannot be written into a prompt",
                    shown(prompt),
                    " and ".join(parts),
                )


def report_slots(prompt: Any) -> None:
    """Warns of prompts that have a place for a subject where there is none."""
    prompts = [prompt] if isinstance(prompt, str) else prompt or []
    for text in prompts:
        if "{}" in text:
            LOG.warning("prompt %s: no concept is loaded, so {} is read as it stands", shown(text))
            return

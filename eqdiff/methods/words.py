"""Prompts in which the class word itself is the subject's place: there is no token of its own.

"{}" becomes the class word. With several subjects at once a prompt says which: "{1}", "{2}", or the
name of each in braces. Only what such a place wrote is the subject, so that "a cat and a {}" has an
ordinary cat too. Places are found by the tokens that the tokenizer made of their characters, all
pieces of a word; an ending that is written on ("{}s") belongs to it where both are one token.

Axes: B prompts, N text tokens.
"""

import re
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from eqdiff.errors import UserError, require
from eqdiff.reader import Places, PromptReader
from eqdiff.settings.groups import Recipe
from eqdiff.settings.prompts import shown
from eqdiff.tokens import PLACEHOLDER, truncated_tails

Span = tuple[int, int, int]  # number of the subject, first character, character after the last
PLACE = re.compile(r"\{([^{}]*)\}")


class WordReader(PromptReader):
    """Reads prompts into ids and the number of the subject at each token: 0 for none."""

    def __init__(
        self, tokenizer: Any, recipe: Recipe, places: Places = MappingProxyType({})
    ) -> None:
        """places: name of a place -> number and class word of its subject; {}: one subject."""
        super().__init__(tokenizer, recipe)
        self.places = places

    def read(self, prompts: list[str], class_word: str) -> tuple[Tensor, Tensor]:
        """Prompts -> ids (B,N), numbers (B,N): 0 where no subject is, else which one.

        It warns as `PromptReader.read` does. Raises UserError if a subject is cut off, or if a
        place names none of several.
        """
        filled = [self._filled(prompt, class_word) for prompt in prompts]
        texts = [text for text, _ in filled]
        encoded = self.base_tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
            return_offsets_mapping=True,
        )

        numbers = torch.zeros_like(encoded.input_ids)
        for row, (text, spans) in enumerate(filled):
            for number, first, last in spans:
                starts, stops = encoded.offset_mapping[row].T
                inside = (starts < last) & (stops > first)  # start, end and padding are empty
                require(inside.any(), self._cut_off(text, numbers.shape[1]))
                numbers[row, inside] = number

        self._require_whole(filled, numbers.shape[1])
        self._report_truncation(texts, numbers)
        self._report_syntax(prompts)
        return encoded.input_ids, numbers

    def placeholders(self, prompts: list[str], class_word: str) -> Tensor:
        """Where the subject is: bool (B,N)."""
        return self.read(prompts, class_word)[1] > 0

    def _filled(self, prompt: str, class_word: str) -> tuple[str, list[Span]]:
        """The prompt with class words in its places, and the spans of characters that they take."""
        if not self.places:
            lone = rf"{re.escape(PLACEHOLDER)}(?:\s+{re.escape(class_word)})?"
            prompt = re.sub(lone, "{}", prompt, flags=re.IGNORECASE)

        text = ""
        spans: list[Span] = []
        end = 0
        for place in PLACE.finditer(prompt):
            subject = self._subject_at(place[1], prompt, class_word)
            text += prompt[end : place.start()]
            end = place.end()
            if subject is None:
                text += place[0]
                continue
            number, word = subject
            spans.append((number, len(text), len(text) + len(word)))
            text += word
        return text + prompt[end:], spans

    def _subject_at(self, name: str, prompt: str, class_word: str) -> tuple[int, str] | None:
        """Number and class word of the subject that a place names; None where it is plain text.

        Raises UserError if there are several subjects and it names none of them.
        """
        if not self.places:
            return (1, class_word) if name == "" else None
        if name in self.places:
            return self.places[name]
        known = ", ".join(f"{{{known}}}" for known in self.places)
        raise UserError(f"prompt {shown(prompt)}: {{{name}}} is none of the concepts; use {known}")

    def _require_whole(self, filled: list[tuple[str, list[Span]]], length: int) -> None:
        """Raises UserError if a part of a subject lies beyond the `length` tokens that are read."""
        tails = truncated_tails(self.base_tokenizer, [text for text, _ in filled], length)
        for (text, spans), tail in zip(filled, tails, strict=True):
            read = len(text.rstrip()) - len(tail)
            whole = not tail or all(last <= read for _, _, last in spans)
            require(whole, self._cut_off(text, length))

    @staticmethod
    def _cut_off(text: str, length: int) -> str:
        return (
            f"prompt {shown(text)}: a subject in it lies beyond the {length} tokens that "
            "the base reads; put {} earlier or shorten the prompt"
        )

"""The subject's learned token embeddings and their place in a prompt (FDTE, paper Sec. 4.1, Eq. 5).

The text encoder and its embedding table stay as they are: the learned rows live in `SubjectTokens` and enter through
hooks.
Axes: B batch, N tokens, D width of the embedding, V vocabulary, R learned rows.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PLACEHOLDER = "<new1>"


def expand(prompt: str, class_word: str) -> str:
    """The prompt with every "{}" replaced by "<new1> class_word"; a literal <new1> stays as it is written."""
    if "{}" not in prompt and PLACEHOLDER not in prompt.lower():
        raise ValueError(f"prompt {prompt!r} does not say where the subject goes: write {{}} in its place")
    return prompt.replace("{}", f"{PLACEHOLDER} {class_word}")


def plain(prompt: str, class_word: str) -> str:
    """The prompt without the learned subject: "{}", "<new1> class_word" and a lone "<new1>" become "class_word"."""
    subject = rf"\{{\}}|{re.escape(PLACEHOLDER)}(?:\s+{re.escape(class_word)})?"
    return re.sub(subject, lambda _: class_word, prompt, flags=re.IGNORECASE)


def add_placeholder(tokenizer: Any, token: str = PLACEHOLDER) -> int:
    """Teach the tokenizer one more token and return its id; a second call changes nothing. The model is not resized.

    Raises ValueError when the token is a special token or a word: it would then stand for the subject everywhere.
    """
    special = token in tokenizer.all_special_tokens
    if not special and token in tokenizer.get_added_vocab():
        return tokenizer.convert_tokens_to_ids(token)
    if special or len(tokenizer(token, add_special_tokens=False).input_ids) < 2:
        raise ValueError(f"placeholder {token!r} is a token of the base already: use one like {PLACEHOLDER!r}")
    tokenizer.add_tokens(token)
    return tokenizer.convert_tokens_to_ids(token)


def beyond(tokenizer: Any, texts: Sequence[str], length: int) -> list[str]:
    """What of each text lies beyond the `length` tokens, start and end among them, that an encoder reads; mostly ""."""
    found = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    last = length - 1  # where the end token goes
    return [
        text[offsets[last][0] :].strip() if len(ids) > length else ""
        for text, ids, offsets in zip(texts, found.input_ids, found.offset_mapping, strict=True)
    ]


def find_slots(ids: Tensor, placeholder_id: int) -> Tensor:
    """Bool (B, N), True where ids (B, N) hold the placeholder. Truncation may take a row's only slot."""
    return ids == placeholder_id


def find_slots_by_whitespace(prompts: Sequence[str], placeholder: str, n_tokens: int) -> Tensor:
    """Bool (B, N): the release's rule, the placeholder's place among the words split at white space, plus one.

    For parity only: it is wrong wherever a word before the placeholder has several tokens. The placeholder's own id
    then stays in the ids, where the release has its rare token: put that token's id there before encoding.
    """
    slots = torch.zeros(len(prompts), n_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        for index, word in enumerate(prompt.split()):
            if placeholder in word.lower() and index + 1 < n_tokens:  # + 1: the start token
                slots[row, index + 1] = True
    return slots


class SubjectTokens(nn.Module):
    """S_LF and S_HF, the learned rows, and S_ori = S_LF + S_HF (Eq. 5). Without FDTE: one row for every band.

    One Parameter holds all rows and every forward touches all of it: data-parallel ranks may draw different bands.
    Two summed rows get the same gradient from a FULL image: S_ori then moves at twice the rate of a single row.
    """

    coefficients: Tensor

    def __init__(self, rows: Tensor) -> None:
        """rows: (R, D), the start, R = 2 (LOW, HIGH) or 1."""
        super().__init__()
        if rows.ndim != 2 or len(rows) not in (1, 2):
            raise ValueError(f"subject rows have shape {tuple(rows.shape)}: give (2, D) for LOW and HIGH, or (1, D)")
        self.rows = nn.Parameter(rows.detach().clone())
        per_band = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]] if len(rows) == 2 else [[1.0], [1.0], [1.0]]
        self.register_buffer("coefficients", torch.tensor(per_band), persistent=False)  # (3, R), in the order of Band

    def forward(self, bands: Tensor) -> Tensor:
        """bands (B,) of Band -> embeddings (B, D)."""
        share = self.coefficients[bands].to(self.rows.dtype)  # (B, R)
        return (share[:, :, None] * self.rows).sum(1)  # exact; a matmul would round under autocast or TF32


def initial_rows(embedding_table: Tensor, ids: list[int], n_rows: int, scale: float) -> Tensor:
    """Where the learned rows start: (n_rows, D), each the mean of the table's (V, D) rows `ids`, times `scale`.

    The paper is silent. Ours: the class word's tokens with scale 1 / n_rows, so that S_ori has a token's usual norm.
    The release: the rare token with scale 1 for each row, so that its S_ori is doubled.
    """
    if not ids:
        raise ValueError("no token to start the subject's embedding from: the word has no tokens")
    mean = embedding_table.detach()[ids].float().mean(0)  # (D,)
    return (mean * scale).repeat(n_rows, 1)


class TokenInjector:
    """Puts learned vectors into the slots of a prompt, between the embedding table and the position embeddings.

    Hooks on the text encoder's token embedding; outside `inject` they do nothing, and `remove` takes them off. The
    result is that of a table with one more row, but the encoder keeps its table and every sample has its own vector.
    """

    def __init__(self, text_encoder: Any) -> None:
        embedding = text_encoder.get_input_embeddings()
        self._active: tuple[Tensor, Tensor] | None = None
        self._handles = [
            embedding.register_forward_pre_hook(self._hide_slots),
            embedding.register_forward_hook(self._fill_slots),
        ]

    @contextmanager
    def inject(self, slots: Tensor, vectors: Tensor) -> Iterator[None]:
        """Within: the encoder sees vectors (B, D) at slots (B, N) bool; a sample without slots is encoded as usual."""
        if vectors.ndim != 2 or slots.ndim != 2 or len(vectors) != len(slots):
            raise ValueError(f"slots {tuple(slots.shape)} and vectors {tuple(vectors.shape)}: need (B, N) and (B, D)")
        before, self._active = self._active, (slots, vectors)
        try:
            yield
        finally:
            self._active = before

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _hide_slots(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._active is None:
            return None
        ids, slots = args[0], self._active[0]
        if ids.shape != slots.shape:
            raise ValueError(f"token ids {tuple(ids.shape)} and slots {tuple(slots.shape)} differ in shape")
        return (ids.masked_fill(slots, 0), *args[1:])  # the placeholder's id has no row; row 0 is replaced below

    def _fill_slots(self, module: nn.Module, args: tuple[Tensor, ...], embedded: Tensor) -> Tensor | None:
        if self._active is None:
            return None
        slots, vectors = self._active
        return torch.where(slots[:, :, None], vectors.to(embedded.dtype)[:, None], embedded)  # (B, N, D)


# Eq. 5: tau(y) with S_LF, S_HF or S_ori in the caption's slot.
def encode(text_encoder: Any, injector: TokenInjector, ids: Tensor, slots: Tensor, vectors: Tensor | None) -> Tensor:
    """Text features (B, N, D) of ids (B, N) with vectors (B, D) at slots (B, N) bool; None: nothing is injected.

    Raises ValueError when an id beyond the embedding table is not covered by a slot. Not on a GPU, where looking would
    stall every step: callers see to it.
    """
    if ids.device.type == "cpu":
        orphans = ids >= text_encoder.get_input_embeddings().num_embeddings
        if vectors is not None:
            orphans = orphans & ~slots
        if orphans.any():
            first = int(ids[orphans][0])
            raise ValueError(f"token id {first} has no row in the embedding table and no vector to inject")
    if vectors is None:
        return text_encoder(ids).last_hidden_state
    with injector.inject(slots, vectors):
        return text_encoder(ids).last_hidden_state

"""The subject's learned embeddings and their place in a prompt: FDTE, the paper's Sec. 4.1 (Eq. 5).

The text encoder and its embedding table stay as they are: the learned rows live in `SubjectTokens`
and enter through the hooks of `TokenInjector`.

Departures from the paper: it does not say where the rows start (see `initial_rows`), and
`--no-fdte` learns a single row. The release finds the subject's place by counting words (see
`find_slots_by_whitespace`).

Axes: B batch, N tokens, D width of the embedding, V vocabulary, R learned rows, P pieces of a word.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eqdiff.errors import UserError
from eqdiff.frequency import Band

PLACEHOLDER = "<new1>"

# Eq. 5, second line: the share of each learned row, S_LF and S_HF, in a band's embedding.
SHARES = {
    Band.LOW: (1.0, 0.0),
    Band.HIGH: (0.0, 1.0),
    Band.FULL: (1.0, 1.0),  # S_ori = S_LF + S_HF
}
WITHOUT_FDTE = dict.fromkeys(Band, (1.0,))  # a single row, whatever the band


def expand(prompt: str, class_word: str) -> str:
    """The prompt with every "{}" replaced by "<new1> class_word"; a literal <new1> stays as it is.

    Raises ValueError if the prompt has neither.
    """
    if "{}" not in prompt and PLACEHOLDER not in prompt.lower():
        raise ValueError(
            f"prompt {prompt!r} does not say where the subject goes: write {{}} in its place"
        )
    return prompt.replace("{}", f"{PLACEHOLDER} {class_word}")


def plain(prompt: str, class_word: str, words: str | None = None) -> str:
    """The prompt without the learned subject.

    "{}", "<new1> class_word" and a lone "<new1>" become `words`, by default the class word.
    """
    subject = rf"\{{\}}|{re.escape(PLACEHOLDER)}(?:\s+{re.escape(class_word)})?"
    words = class_word if words is None else words
    return re.sub(subject, lambda _: words, prompt, flags=re.IGNORECASE)


def add_placeholder(tokenizer: Any, token: str = PLACEHOLDER) -> int:
    """Teaches the tokenizer one more token and returns its id. The model is not resized.

    A second call changes nothing. Raises ValueError if the token is a special token or a word, for
    it would then stand for the subject everywhere.
    """
    special = token in tokenizer.all_special_tokens
    if not special and token in tokenizer.get_added_vocab():
        return tokenizer.convert_tokens_to_ids(token)

    if special or len(tokenizer(token, add_special_tokens=False).input_ids) < 2:
        raise ValueError(
            f"placeholder {token!r} is a token of the base already: use one like {PLACEHOLDER!r}"
        )
    tokenizer.add_tokens(token)
    return tokenizer.convert_tokens_to_ids(token)


def rare_ids(tokenizer: Any, word: str) -> list[int]:
    """The ids of the release's rare token: the vocabulary's entry `word`, else the text's.

    The two differ: CLIP has an entry "ktn" (42170), a piece of longer words, and reads the text
    "ktn" as "k" and "tn".
    """
    entry = tokenizer.get_vocab().get(word)
    return tokenizer(word, add_special_tokens=False).input_ids if entry is None else [entry]


def truncated_tails(tokenizer: Any, texts: Sequence[str], length: int) -> list[str]:
    """The end of each text that an encoder of `length` tokens does not read; mostly "".

    The start token and the end token count among the `length`.
    """
    tokens = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    last = length - 1  # where the end token goes

    tails = []
    for text, ids, offsets in zip(texts, tokens.input_ids, tokens.offset_mapping, strict=True):
        truncated = len(ids) > length
        tails.append(text[offsets[last][0] :].strip() if truncated else "")
    return tails


def require_rows(tokenizer: Any, text_encoder: Any, ids: Tensor) -> None:
    """Raises UserError if an id (B, N) on the CPU has no row in the embedding table.

    A tokenizer may have added tokens that nobody ever gave an embedding.
    """
    rows = text_encoder.get_input_embeddings().num_embeddings
    orphans = ids[ids >= rows]
    if len(orphans):
        token = tokenizer.convert_ids_to_tokens(int(orphans[0]))
        raise UserError(
            f"the base's tokenizer has a token {token!r} that its text encoder has no embedding "
            "for: leave it out of the prompt"
        )


def find_slots(ids: Tensor, placeholder_id: int) -> Tensor:
    """Bool (B, N), True where ids (B, N) hold the placeholder. Truncation may have removed it."""
    return ids == placeholder_id


def find_columns(ids: Tensor, word_ids: Sequence[int]) -> Tensor:
    """The columns of a cross-attention map that belong to a word: bool (B, N).

    True where the word's tokens `word_ids` stand one after another in ids (B, N). Raises ValueError
    if the word has no tokens.
    """
    if not len(word_ids):
        raise ValueError("a word without tokens has no columns")
    columns = torch.zeros_like(ids, dtype=torch.bool)
    if len(word_ids) > ids.shape[1]:
        return columns

    windows = ids.unfold(1, len(word_ids), 1)  # (B, N) -> (B, N - P + 1, P)
    starts = (windows == torch.tensor(list(word_ids), device=ids.device)).all(-1)  # (B, N - P + 1)
    for piece in range(len(word_ids)):
        columns[:, piece : piece + starts.shape[1]] |= starts
    return columns


def find_slots_by_whitespace(prompts: Sequence[str], placeholder: str, n_tokens: int) -> Tensor:
    """Bool (B, N) by the release's rule: the placeholder's number among the words, plus one.

    For parity only. It is wrong wherever a word before the placeholder has several tokens. The
    placeholder's own id then stays in the ids, where the release has its rare token: put that
    token's id there before encoding.
    """
    slots = torch.zeros(len(prompts), n_tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        for index, word in enumerate(prompt.split()):
            if placeholder in word.lower() and index + 1 < n_tokens:  # + 1: the start token
                slots[row, index + 1] = True
    return slots


# Eq. 5: S* = R[S_LF, S_HF, S_ori], with the band's embedding in place of the random choice.
class SubjectTokens(nn.Module):
    """S_LF and S_HF, the learned rows, and their sum S_ori. Without FDTE: one row for every band.

    One Parameter holds all rows, and every forward touches all of it: data-parallel ranks may draw
    different bands. Two summed rows get the same gradient from a FULL image, so S_ori then moves at
    twice the rate of a single row.
    """

    coefficients: Tensor

    def __init__(self, rows: Tensor) -> None:
        """rows: (R, D), where they start; R is 2, or 1 without FDTE. Raises ValueError if not."""
        super().__init__()
        full = len(SHARES[Band.FULL])
        if rows.ndim != 2 or len(rows) not in (1, full):
            raise ValueError(
                f"subject rows have shape {tuple(rows.shape)}: give ({full}, D), "
                "or (1, D) without FDTE"
            )
        self.rows = nn.Parameter(rows.detach().clone())

        shares = SHARES if len(rows) == full else WITHOUT_FDTE
        coefficients = torch.tensor([shares[band] for band in Band])  # (bands, R)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def forward(self, bands: Tensor) -> Tensor:
        """bands (B,) of Band -> embeddings (B, D)."""
        share = self.coefficients[bands].to(self.rows.dtype)  # (B, R)
        # exact: a matmul would round under autocast or TF32
        return (share[:, :, None] * self.rows).sum(1)  # (B, R, D) -> (B, D)


def initial_rows(embedding_table: Tensor, ids: list[int], n_rows: int, scale: float) -> Tensor:
    """Where the learned rows start (n_rows, D): each is the mean of rows `ids` times `scale`.

    The rows are those of the embedding table (V, D). The paper is silent about the start. Ours: the
    class word's tokens with scale 1 / n_rows, so that S_ori has a token's usual norm. The release:
    the rare token with scale 1 for each row, so that its S_ori is doubled.

    Raises ValueError if there are no ids.
    """
    if not ids:
        raise ValueError("no token to start the subject's embedding from: the word has no tokens")
    mean = embedding_table.detach()[ids].float().mean(0)  # (D,)
    return (mean * scale).repeat(n_rows, 1)


class TokenInjector:
    """Puts learned vectors into the slots of a prompt, before position embeddings are added.

    Within `inject` it hooks the text encoder's token embedding, outside there is no hook. The
    result is that of a table with one more row, but the encoder keeps its table and every sample
    has its own vector.
    """

    def __init__(self, text_encoder: Any) -> None:
        self._text_encoder = text_encoder
        self._active: tuple[Tensor, Tensor] | None = None

    @contextmanager
    def inject(self, slots: Tensor, vectors: Tensor) -> Iterator[None]:
        """Within: the encoder sees vectors (B, D), or (B, N, D), at slots (B, N) bool.

        A sample without slots is encoded as usual. Raises ValueError if the two do not fit.
        """
        if vectors.ndim not in (2, 3) or slots.ndim != 2 or len(vectors) != len(slots):
            raise ValueError(
                f"slots {tuple(slots.shape)} and vectors {tuple(vectors.shape)}: "
                "need (B, N) and (B, D)"
            )

        embedding = self._text_encoder.get_input_embeddings()  # a textual inversion makes a new one
        hooks = (
            embedding.register_forward_pre_hook(self._hide_slots),
            embedding.register_forward_hook(self._fill_slots),
        )
        self._active = (slots, vectors)
        try:
            yield
        finally:
            self._active = None
            for hook in hooks:
                hook.remove()

    def _hide_slots(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids = args[0]
        slots, _ = self._active
        if ids.shape != slots.shape:
            raise ValueError(
                f"token ids {tuple(ids.shape)} and slots {tuple(slots.shape)} differ in shape"
            )
        # the placeholder's id has no row: take row 0, which `_fill_slots` replaces
        return (ids.masked_fill(slots.to(ids.device), 0), *args[1:])

    def _fill_slots(self, module: nn.Module, args: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
        slots, vectors = (x.to(embedded.device) for x in self._active)  # offloading moves the rest
        filling = vectors.to(embedded.dtype).view(len(vectors), -1, vectors.shape[-1])  # (B, 1, D)
        return torch.where(slots[:, :, None], filling, embedded)  # (B, N, D)


# Eq. 5: tau(y) with S_LF, S_HF or S_ori in the caption's slot.
def encode(
    text_encoder: Any,
    injector: TokenInjector,
    ids: Tensor,
    slots: Tensor,
    vectors: Tensor | None,
    clip_skip: int | None = None,
) -> Tensor:
    """Text features (B, N, D) of ids (B, N) with vectors (B, D) at slots (B, N) bool.

    vectors None: nothing is injected. clip_skip: so many of the encoder's last layers are left out.

    Raises ValueError if an id beyond the embedding table is not covered by a slot. Not on a GPU,
    where the check would stall every step: there the caller sees to it.
    """
    if ids.device.type == "cpu":
        covered = torch.zeros_like(slots) if vectors is None else slots
        _require_rows(text_encoder, ids, covered)

    if vectors is None:
        return features(text_encoder, ids, clip_skip)
    with injector.inject(slots, vectors):
        return features(text_encoder, ids, clip_skip)


def features(text_encoder: Any, ids: Tensor, clip_skip: int | None = None) -> Tensor:
    """Text features (B, N, D) of ids (B, N), without the encoder's last `clip_skip` layers."""
    if not clip_skip:
        return text_encoder(ids).last_hidden_state

    layers = text_encoder(ids, output_hidden_states=True).hidden_states
    norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    return norm(layers[-(clip_skip + 1)])


def _require_rows(text_encoder: Any, ids: Tensor, covered: Tensor) -> None:
    """Raises ValueError if an id (B, N) has no row in the table and is not covered (B, N)."""
    orphans = (ids >= text_encoder.get_input_embeddings().num_embeddings) & ~covered
    if orphans.any():
        first = int(ids[orphans][0])
        raise ValueError(
            f"token id {first} has no row in the embedding table and no vector to inject"
        )

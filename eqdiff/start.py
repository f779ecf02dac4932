"""Where the token rows start (Sec. 4.1); the paper does not say, see `tokens.initial_rows`.

Cross Initialization (arXiv 2312.15905) is the choice `output`: the text encoder's output for the
class word in place of the word's own embedding, which a learned one ends up far longer than. Ours:
the word stands alone in the text. The paper's pull towards the start is not here.

Axes: P pieces of a word, R learned rows, D text width.
"""

import torch
from torch import Tensor

from eqdiff.base.load import Base
from eqdiff.errors import require
from eqdiff.settings.train import TrainConfig
from eqdiff.tokens import features, initial_rows, rare_ids, require_rows


def start_rows(base: Base, config: TrainConfig) -> Tensor:
    """The start of the token rows (R,D): the mean of a word's vectors, see `initial_rows`.

    Their sum is `token_init_scale` times as long as that. Raises what `start_vectors` raises.
    """
    rows = config.token_rows
    return mean_rows(start_vectors(base, config), rows, config.token_init_scale / config.token_rows)


def mean_rows(vectors: Tensor, n_rows: int, scale: float) -> Tensor:
    """The mean of vectors (P,D), `scale` times, in each of (n_rows,D)."""
    return initial_rows(vectors, list(range(len(vectors))), n_rows, scale)


def start_vectors(base: Base, config: TrainConfig, rare: str | None = None) -> Tensor:
    """The vectors of the word that rows start from: (P,D).

    The word is the class word, or the rare token, which is looked up in the vocabulary first. rare:
    another rare token than the settings'. The vectors are its embeddings, or the text encoder's
    outputs for them. Raises UserError if it has no tokens, or if one of them has no embedding.
    """
    if config.token_init == "rare":
        word = rare or config.rare_token
        ids = rare_ids(base.tokenizer, word)
    else:
        word = config.class_word
        ids = base.tokenizer(word, add_special_tokens=False).input_ids

    require(ids, f"{word!r} has no tokens to start the subject from: give another --class_word")
    require_rows(base.tokenizer, base.text_encoder, torch.tensor([ids]))
    if config.token_init == "output":
        return outputs_for(base, word, len(ids))
    return base.text_encoder.get_input_embeddings().weight.detach()[ids]


@torch.no_grad()
def outputs_for(base: Base, word: str, pieces: int) -> Tensor:
    """The text encoder's outputs at the pieces of a word that stands alone in the text: (P,D)."""
    ids = base.tokenizer([word], padding="max_length", truncation=True, return_tensors="pt")
    device = base.text_encoder.get_input_embeddings().weight.device
    text = features(base.text_encoder, ids.input_ids.to(device))
    return text[0, 1 : 1 + pieces]  # behind the start token

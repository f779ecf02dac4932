"""What makes a base the same base: its weights, its noise schedule, how its tokenizer reads.

A concept is trained against all three. The weights alone decide whether a concept fits; a schedule
or a tokenizer that has changed is told in words.

Axes: T timesteps of the schedule.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from eqdiff.base.adapters import own_parameters, unwrapped
from eqdiff.base.schedule import alphas_of

FINGERPRINT_SAMPLES = 64  # values of each tensor
PLACES = 17  # timesteps, from the first to the last, whose alpha_bar an identity holds
MOST_WORD = 64  # characters of a digest, or of what a UNet predicts
SAME = 1e-4  # of a picture: less is rounding
TABLE = "embeddings.token_embedding.weight"  # of CLIP's text encoder: a row a token
ROUNDS_TO_HALF = (torch.float32, torch.float16)
# words and what is no word: they meet merges of every length, and single bytes
PROBE = """
a photo of a watercolor painting in the style of vincent van gogh, highly detailed; an astronaut
riding a horse on mars. close-up portrait, 85mm, f/1.8! ktn sks <object> qzxj 1234567890 Größe 猫 🐈
""".split("\n")


@dataclass(frozen=True)
class Identity:
    """What a base is.

    weights: a digest of the UNet's and the text encoder's, all of them, rounded to half precision,
    so that a base in half precision is the same base; "" where they are in bf16, which keeps too
    little of them, or not in memory. prediction: what the UNet predicts. alpha_bar: at PLACES
    timesteps of T. tokenizer: a digest of its vocabulary, and of how it reads some text.
    """

    weights: str
    prediction: str
    timesteps: int
    alpha_bar: tuple[float, ...]
    tokenizer: str

    @classmethod
    def parsed(cls, facts: Any) -> "Identity":
        """The identity in a concept file, which may be a stranger's, from its JSON.

        Raises ValueError if it is none.
        """
        names = {field.name for field in fields(cls)}
        known = isinstance(facts, Mapping) and names <= facts.keys()
        kept = facts.get("alpha_bar") if known else None
        listed = isinstance(kept, list) and len(kept) == PLACES
        numbers = listed and all(type(value) in (int, float) for value in kept)
        if not (numbers and all(math.isfinite(value) for value in kept)):
            raise ValueError("the identity of its base is none")

        words = [facts[name] for name in ("weights", "prediction", "tokenizer")]
        short = all(isinstance(word, str) and len(word) <= MOST_WORD for word in words)
        if not short or type(facts["timesteps"]) is not int:
            raise ValueError("the identity of its base is none")
        return cls(**{name: facts[name] for name in names} | {"alpha_bar": tuple(kept)})


def identify(unet: nn.Module, text_encoder: nn.Module, tokenizer: Any, scheduler: Any) -> Identity:
    """The identity of a base with these parts; LoRAs and added tokens do not belong to it.

    Raises UserError if the scheduler has no noise schedule.
    """
    alphas = alphas_of(scheduler)
    places = torch.linspace(0, len(alphas) - 1, PLACES).round().long()
    return Identity(
        weights=_digest_of_weights(unet, text_encoder, tokenizer.vocab_size),
        prediction=str(scheduler.config.get("prediction_type", "epsilon")),
        timesteps=len(alphas),
        alpha_bar=tuple(round(value, 6) for value in alphas[places].tolist()),
        tokenizer=_digest_of_tokenizer(tokenizer),
    )


def changes(then: Identity, now: Identity) -> list[str]:
    """What differs between two identities beside the weights, in words."""
    words = []
    if then.prediction != now.prediction:
        words.append(f"its UNet predicted {then.prediction}, and predicts {now.prediction} now")

    if then.timesteps != now.timesteps:
        words.append(f"its noise schedule had {then.timesteps} timesteps, and has {now.timesteps}")
    else:
        pairs = zip(then.alpha_bar, now.alpha_bar, strict=True)
        before, after = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
        if abs(before - after) > SAME:
            words.append(f"its noise schedule had alpha_bar {before:.4f} where it has {after:.4f}")

    if then.tokenizer != now.tokenizer:
        words.append("its tokenizer read words differently")
    return words


def fingerprint(*modules: nn.Module, words: int | None = None) -> str:
    """16 hex digits that identify weights, from names, shapes and a few values of every tensor.

    The values are rounded to bf16. The same weights have the same fingerprint, whatever names the
    library gives CLIP's layers, and whatever adapters are on them. A copy in half precision has
    another fingerprint. words: of the text encoder's table the first rows alone count.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in _own_weights(module):
            own = tensor[:words] if name == TABLE else tensor
            flat = own.flatten()
            few = flat[:: max(1, len(flat) // FINGERPRINT_SAMPLES)]
            rounded = few.float().bfloat16().float().cpu()
            digest.update(f"{name}{tuple(own.shape)}".encode() + rounded.numpy().tobytes())

    return digest.hexdigest()[:16]


def fingerprint_like(expected: str, unet: Any, text_encoder: Any, tokenizer: Any) -> str:
    """The fingerprint of a base to which words may have been added since it was loaded.

    It is `expected` if the base without some of these words, or all, has that; else another.
    """
    rows = text_encoder.get_input_embeddings().num_embeddings
    ids = tokenizer.get_added_vocab().values()
    added = sum(number >= tokenizer.vocab_size for number in ids)
    fewer = (0, *range(added, 0, -1))
    found = [fingerprint(unet, text_encoder, words=rows - number) for number in fewer]
    return expected if expected in found else found[0]


def _own_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a module's weights in the order of the names, without adapters'.

    The names are the same whatever a library puts around the layers.
    """
    named = {
        name.removeprefix("text_model."): tensor.detach()
        for name, tensor in own_parameters(unwrapped(module))
    }
    yield from sorted(named.items())


def _digest_of_weights(unet: nn.Module, text_encoder: nn.Module, vocabulary: int) -> str:
    """vocabulary: rows of the embedding table that are the base's own."""
    digest = hashlib.sha256()
    for module in (unet, text_encoder):
        for name, tensor in _own_weights(module):
            if tensor.dtype not in ROUNDS_TO_HALF or tensor.is_meta:
                return ""
            own = tensor[:vocabulary] if name == TABLE else tensor
            values = own.half().cpu().contiguous().numpy()
            digest.update(f"{name}{tuple(own.shape)}".encode())
            digest.update(values)

    return digest.hexdigest()[:16]


def _digest_of_tokenizer(tokenizer: Any) -> str:
    others = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    vocabulary = tokenizer.get_vocab().items()
    own = sorted(entry for entry in vocabulary if entry[0] not in others)
    read = tokenizer(PROBE, verbose=False).input_ids
    return hashlib.sha256(repr((own, read)).encode()).hexdigest()[:16]

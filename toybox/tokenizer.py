"""The toybox's tokenizer: CLIP's byte-level BPE, learned on captions and everyday words."""

import argparse
import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from toybox.captions import caption
from toybox.world import PAIR_SHARE, random_scene

VOCABULARY = 2048
MAX_TOKENS = 32  # a caption has at most 30; with SD's 77 every cross-attention would cost more
# whole words of the vocabulary that no caption uses: starting points for a subject
RARE = ("ktn", "sks")
BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
WORDS = Path(__file__).with_name("words.txt")


def _corpus() -> list[str]:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, pair_share=PAIR_SHARE) for _ in range(6000)]
    captions = [caption(s.subjects, s.context, s.style, rng) for s in scenes]
    return captions + WORDS.read_text().split("\n") * 5 + list(RARE) * 500


def _learn() -> list[tuple[str, str]]:
    """The merges of a BPE over the corpus, the most frequent first."""
    model = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=EOS))
    model.normalizer = Lowercase()
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = Split(words, "removed", invert=True)
    model.pre_tokenizer = Sequence([split, ByteLevel(add_prefix_space=False)])

    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator(_corpus(), trainer)
    return [tuple(pair) for pair in json.loads(model.to_str())["model"]["merges"]]


def build(folder: Path) -> CLIPTokenizer:
    """Learns the BPE, writes the tokenizer's files, and returns the tokenizer."""
    merges = _learn()
    # CLIP's order: bytes, bytes that end a word, merges, then the two marks
    alphabet = sorted(ByteLevel.alphabet())
    endings = [f"{byte}</w>" for byte in alphabet]
    tokens = [*alphabet, *endings, *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": EOS,
    }

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    folder = Path("assets/toybox/base/tokenizer")
    parser.add_argument("--output", type=Path, default=folder, metavar="DIR")
    build(parser.parse_args().output)

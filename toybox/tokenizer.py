"""The toybox's tokenizer: CLIP's byte-level BPE, learned on captions and on a list of everyday words."""

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
from toybox.world import random_scene

VOCABULARY = 2048
MAX_TOKENS = 32  # a caption has at most 20; SD's 77 would make every cross-attention of the toybox dearer
RARE = ("ktn", "sks")  # whole words of the vocabulary that no caption uses: starting points for a subject
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORDS = Path(__file__).with_name("words.txt")


def _corpus() -> list[str]:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(3000)]
    captions = [caption(s.instance, s.context, s.style, rng) for s in scenes]
    return captions + WORDS.read_text().split("\n") * 5 + list(RARE) * 500


def build(folder: Path) -> CLIPTokenizer:
    """Learns the BPE, writes vocab.json, merges.txt and the configuration, and returns the tokenizer."""
    model = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=EOS))
    model.normalizer = Lowercase()
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    model.pre_tokenizer = Sequence([Split(words, "removed", invert=True), ByteLevel(add_prefix_space=False)])
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(_corpus(), trainer)
    learned = json.loads(model.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, then the two marks
    tokens = [*sorted(alphabet), *(f"{byte}</w>" for byte in sorted(alphabet)), *("".join(pair) for pair in merges)]
    vocabulary = {token: number for number, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "bos_token": BOS, "eos_token": EOS}
    settings |= {"pad_token": EOS, "unk_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return CLIPTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    build(Path("assets/toybox/base/tokenizer"))

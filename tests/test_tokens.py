"""The learned rows, their slot in a prompt, and their injection into the text encoder (Eq. 5)."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from eqdiff.frequency import Band
from eqdiff.tokens import (
    PLACEHOLDER,
    SubjectTokens,
    TokenInjector,
    add_placeholder,
    encode,
    expand,
    find_columns,
    find_slots,
    find_slots_by_whitespace,
    initial_rows,
    plain,
)


@pytest.fixture
def text(tiny_base: Path) -> SimpleNamespace:
    """Tokenizer with the placeholder, frozen text encoder, injector; `ids(*prompts)` -> (B, 77)."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base, subfolder="tokenizer")
    placeholder_id = add_placeholder(tokenizer)
    encoder = (
        CLIPTextModel.from_pretrained(tiny_base, subfolder="text_encoder")
        .requires_grad_(False)
        .eval()
    )
    injector = TokenInjector(encoder)

    def ids(*prompts: str) -> Tensor:
        return tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids

    return SimpleNamespace(
        tokenizer=tokenizer, encoder=encoder, injector=injector, ids=ids, id=placeholder_id
    )


def places(slots: Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in slots]


def n_tokens(text: SimpleNamespace, words: str) -> int:
    return len(text.tokenizer(words, add_special_tokens=False).input_ids)


def random_tokens(n_rows: int = 2) -> SubjectTokens:
    return SubjectTokens(torch.randn(n_rows, 32) * 0.02)


# -- prompts ---------------------------------------------------------------------------------------


def test_the_subject_is_written_as_placeholder_and_class_word() -> None:
    assert expand("a {} on a {}", "cat toy") == "a <new1> cat toy on a <new1> cat toy"
    assert expand("a <new1> kitten", "cat") == "a <new1> kitten"


def test_a_prompt_without_the_subject_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="a cat on the moon.*{}"):
        expand("a cat on the moon", "cat")


@pytest.mark.parametrize(
    "prompt", ["a {} in snow", "a <new1> cat in snow", "a <new1> in snow", "a <NEW1> Cat in snow"]
)
def test_the_plain_prompt_names_the_class_alone(prompt: str) -> None:
    assert plain(prompt, "cat") == "a cat in snow"


# -- the placeholder and its slot ------------------------------------------------------------------


def test_the_placeholder_is_one_new_token_and_adding_it_twice_changes_nothing(
    text: SimpleNamespace,
) -> None:
    size = len(text.tokenizer)
    assert add_placeholder(text.tokenizer) == text.id == size - 1
    assert len(text.tokenizer) == size
    assert (
        text.encoder.get_input_embeddings().num_embeddings == size - 1
    )  # the model was not resized


@pytest.mark.parametrize("token", ["cat", "ktn", "<|endoftext|>"])
def test_a_word_of_the_vocabulary_is_no_placeholder(text: SimpleNamespace, token: str) -> None:
    with pytest.raises(ValueError, match=token.replace("|", r"\|")):
        add_placeholder(text.tokenizer, token)


@pytest.mark.parametrize(
    ("prompt", "before"),
    [
        ("photo of a <new1> cat", ["photo of a"]),
        ("Pointillism-inspired painting of a <new1> cat", ["pointillism-inspired painting of a"]),
        ("a <new1> cat in the style of Georgia O'Keeffe", ["a"]),
        ("in the style of Georgia O'Keeffe, a <new1>.", ["in the style of georgia o'keeffe, a"]),
        ('a "<new1>", seen from far away', ['a "']),
        ("a <new1> cat and a <new1> dog", ["a", "a <new1> cat and a"]),
        ("a <NEW1> cat", ["a"]),
        ("a cat", []),
    ],
)
def test_slots_stand_where_the_placeholder_stands(
    text: SimpleNamespace, prompt: str, before: list[str]
) -> None:
    expected = [1 + n_tokens(text, words) for words in before]
    assert places(find_slots(text.ids(prompt), text.id)) == [expected]


def test_the_columns_of_a_word_are_all_its_pieces_wherever_it_stands(text: SimpleNamespace) -> None:
    word = text.tokenizer(" zebra", add_special_tokens=False).input_ids
    assert len(word) > 1
    ids = text.ids("pointillism zebra and a zebra", "no such word")
    columns = find_columns(ids, word)
    assert ids[columns].tolist() == word * 2
    assert not columns[1].any()
    assert not find_columns(ids[:, : len(word) - 1], word).any()
    with pytest.raises(ValueError, match="no columns"):
        find_columns(ids, [])


def test_a_truncated_placeholder_leaves_no_slot(text: SimpleNamespace) -> None:
    slots = find_slots(text.ids("very " * 80 + "<new1> cat", "a <new1> cat"), text.id)
    assert slots.any(1).tolist() == [False, True]


def both_rules(text: SimpleNamespace, prompt: str) -> tuple[list[int], list[int]]:
    by_id = find_slots(text.ids(prompt), text.id)
    return places(by_id)[0], places(find_slots_by_whitespace([prompt], PLACEHOLDER, 77))[0]


@pytest.mark.parametrize(
    "prompt",
    [
        "photo of a <new1> cat",
        "a very small <new1> dog on the beach",
        "a <new1> cat in the style of Georgia O'Keeffe",  # several tokens, but after the slot
        "a <new1> cat, a Pointillism-inspired painting",
    ],
)
def test_the_white_space_rule_is_right_behind_words_of_one_token(
    text: SimpleNamespace, prompt: str
) -> None:
    by_id, by_space = both_rules(text, prompt)
    assert by_id == by_space


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("Georgia O'Keeffe style painting of a <new1> cat", "Georgia O'Keeffe"),
        ("Pointillism-inspired painting of a <new1> cat", "Pointillism-inspired"),
        ("Hyperrealistic drawing of a <new1> cat", "Hyperrealistic"),
        ("zoomed in photo of a <new1> cat", "zoomed"),
    ],
)
def test_the_white_space_rule_is_wrong_behind_a_word_of_several_tokens(
    text: SimpleNamespace, prompt: str, word: str
) -> None:
    by_id, by_space = both_rules(text, prompt)
    shift = n_tokens(text, word) - len(word.split())
    assert shift > 0 and by_space == [by_id[0] - shift]


def test_the_white_space_rule_stops_at_the_last_token() -> None:
    assert places(find_slots_by_whitespace(["a b c <new1>", "<new1> b"], PLACEHOLDER, 4)) == [
        [],
        [1],
    ]


# -- the learned rows ------------------------------------------------------------------------------


def test_low_and_high_are_the_rows_and_full_is_their_sum() -> None:
    tokens = random_tokens()
    low, high, full = tokens(torch.tensor([Band.LOW, Band.HIGH, Band.FULL]))
    assert torch.equal(low, tokens.rows[0]) and torch.equal(high, tokens.rows[1])
    assert torch.equal(full, tokens.rows[0] + tokens.rows[1])


def test_without_fdte_every_band_is_the_same_row() -> None:
    tokens = random_tokens(n_rows=1)
    assert all(torch.equal(vector, tokens.rows[0]) for vector in tokens(torch.tensor(list(Band))))


def test_the_rows_are_the_only_parameter_and_the_only_state() -> None:
    assert (
        list(dict(random_tokens().named_parameters()))
        == list(random_tokens().state_dict())
        == ["rows"]
    )


def test_autocast_does_not_round_the_rows() -> None:
    tokens = random_tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = tokens(torch.tensor(list(Band)))
    assert torch.equal(vectors, tokens(torch.tensor(list(Band))))


def test_rows_start_at_the_scaled_mean_of_the_words_tokens() -> None:
    table = torch.randn(10, 32)
    rows = initial_rows(table, [2, 7], 2, 0.5)
    assert torch.allclose(rows, ((table[2] + table[7]) / 4).expand(2, 32))
    assert torch.allclose(
        SubjectTokens(rows)(torch.tensor([Band.FULL]))[0], (table[2] + table[7]) / 2
    )


def test_training_the_rows_leaves_the_table_alone() -> None:
    table = torch.randn(10, 32, requires_grad=True)
    before = table.detach().clone()
    tokens = SubjectTokens(initial_rows(table, [3], 1, 1.0))
    tokens(torch.tensor([0])).sum().backward()
    with torch.no_grad():
        tokens.rows.add_(1)
    assert table.grad is None and torch.equal(table, before)


def test_the_rows_do_not_share_memory_with_their_start() -> None:
    start = torch.randn(2, 32)
    before, tokens = start.clone(), SubjectTokens(start)
    with torch.no_grad():
        tokens.rows.add_(1)
    assert torch.equal(start, before)


def test_wrong_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 32\)"):
        SubjectTokens(torch.zeros(3, 32))
    with pytest.raises(ValueError, match="no tokens"):
        initial_rows(torch.zeros(10, 32), [], 2, 1.0)


# -- injection -------------------------------------------------------------------------------------


def encoder_with_row(text: SimpleNamespace, vector: Tensor) -> Any:
    """A copy of the text encoder whose table was resized to hold `vector` as the placeholder's
    row.
    """
    resized = copy.deepcopy(text.encoder)
    resized.resize_token_embeddings(len(text.tokenizer), mean_resizing=False)
    resized.get_input_embeddings().weight.data[text.id] = vector
    return resized


def test_injection_equals_a_row_of_a_resized_table(text: SimpleNamespace) -> None:
    prompts = ["photo of a <new1> cat", "Pointillism-inspired <new1>, and a <new1> dog", "a <new1>"]
    ids, bands = text.ids(*prompts), torch.tensor([Band.LOW, Band.FULL, Band.HIGH])
    vectors = random_tokens()(bands).detach()
    injected = encode(text.encoder, text.injector, ids, find_slots(ids, text.id), vectors)
    for row, vector in enumerate(vectors):
        expected = encoder_with_row(text, vector)(ids[row : row + 1]).last_hidden_state[0]
        assert torch.allclose(
            injected[row], expected, atol=1e-6
        )  # a batch of 3 and of 1 may round apart
    same = vectors[:1].expand(3, -1)
    injected = encode(text.encoder, text.injector, ids, find_slots(ids, text.id), same)
    assert torch.equal(injected, encoder_with_row(text, same[0])(ids).last_hidden_state)


def test_a_sample_without_slot_is_encoded_as_usual(text: SimpleNamespace) -> None:
    ids = text.ids("photo of a cat", "photo of a <new1> cat")
    features = encode(
        text.encoder, text.injector, ids, find_slots(ids, text.id), torch.randn(2, 32)
    )
    both = text.ids("photo of a cat", "photo of a cat")
    assert torch.equal(features[0], text.encoder(both).last_hidden_state[0])


@pytest.mark.parametrize("band", [Band.LOW, Band.HIGH])
def test_gradient_of_one_band_reaches_its_row_alone(text: SimpleNamespace, band: Band) -> None:
    tokens, ids = random_tokens(), text.ids("photo of a <new1> cat")
    text.encoder.requires_grad_(True)
    vectors = tokens(torch.tensor([band]))
    with text.injector.inject(find_slots(ids, text.id), vectors):
        embedded = text.encoder.get_input_embeddings()(ids)
        features = text.encoder(ids).last_hidden_state
    features.square().sum().backward()
    assert tokens.rows.grad[band].abs().min() > 0
    assert torch.equal(tokens.rows.grad[1 - band], torch.zeros(32))
    assert torch.equal(embedded[0, 4], vectors[0]) and not torch.equal(embedded[0, 5], vectors[0])


def test_gradient_of_the_whole_image_reaches_both_rows_alike(text: SimpleNamespace) -> None:
    tokens, ids = random_tokens(), text.ids("photo of a <new1> cat")
    slots = find_slots(ids, text.id)
    encode(
        text.encoder, text.injector, ids, slots, tokens(torch.tensor([Band.FULL]))
    ).square().sum().backward()
    assert tokens.rows.grad.abs().min() > 0 and torch.equal(
        tokens.rows.grad[0], tokens.rows.grad[1]
    )
    assert all(parameter.grad is None for parameter in text.encoder.parameters())


def test_training_leaves_the_encoder_as_it_was(text: SimpleNamespace) -> None:
    before = {name: tensor.clone() for name, tensor in text.encoder.state_dict().items()}
    tokens, ids = random_tokens(), text.ids("photo of a <new1> cat")
    start = tokens.rows.detach().clone()
    optimizer = torch.optim.AdamW(tokens.parameters(), lr=0.1, weight_decay=0.0)
    for band in Band:
        vectors = tokens(torch.tensor([band]))
        encode(
            text.encoder, text.injector, ids, find_slots(ids, text.id), vectors
        ).square().sum().backward()
        optimizer.step()
    after = text.encoder.state_dict()
    assert not torch.isclose(tokens.rows, start).any()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )


def test_outside_inject_the_encoder_is_untouched_even_after_an_error(text: SimpleNamespace) -> None:
    ids = text.ids("photo of a cat")
    expected = text.encoder(ids).last_hidden_state
    with (
        pytest.raises(RuntimeError),
        text.injector.inject(torch.ones(1, 77, dtype=torch.bool), torch.ones(1, 32)),
    ):
        assert not torch.equal(text.encoder(ids).last_hidden_state, expected)
        raise RuntimeError
    assert torch.equal(text.encoder(ids).last_hidden_state, expected)


def test_hooks_are_on_the_table_within_inject_alone_on_the_one_that_is_there_now(
    text: SimpleNamespace,
) -> None:
    ids = text.ids("photo of a cat")
    slots = torch.zeros(1, 77, dtype=torch.bool)
    text.encoder.resize_token_embeddings(len(text.tokenizer), mean_resizing=False)
    embedding = text.encoder.get_input_embeddings()
    with text.injector.inject(slots, torch.ones(1, 32)):
        text.encoder(ids)
        assert embedding._forward_hooks and embedding._forward_pre_hooks
    assert not embedding._forward_hooks and not embedding._forward_pre_hooks


def test_bf16_encoders_take_fp32_rows(text: SimpleNamespace) -> None:
    tokens, ids = random_tokens(), text.ids("photo of a <new1> cat")
    vectors = tokens(torch.tensor([Band.FULL]))
    features = encode(
        text.encoder.bfloat16(), text.injector, ids, find_slots(ids, text.id), vectors
    )
    features.float().square().sum().backward()
    assert features.dtype == torch.bfloat16 and tokens.rows.grad.dtype == torch.float32


def test_an_id_without_row_and_without_slot_is_named(text: SimpleNamespace) -> None:
    ids, nowhere = text.ids("photo of a <new1> cat"), torch.zeros(1, 77, dtype=torch.bool)
    with pytest.raises(ValueError, match=str(text.id)):
        encode(text.encoder, text.injector, ids, nowhere, torch.zeros(1, 32))
    with pytest.raises(ValueError, match=str(text.id)):
        encode(text.encoder, text.injector, ids, find_slots(ids, text.id), None)


def test_without_vectors_nothing_is_injected(text: SimpleNamespace) -> None:
    ids = text.ids("photo of a cat")
    slots = torch.ones(1, 77, dtype=torch.bool)
    features = encode(text.encoder, text.injector, ids, slots, None)
    assert torch.equal(features, text.encoder(ids).last_hidden_state)


def test_slots_and_vectors_that_do_not_fit_are_refused(text: SimpleNamespace) -> None:
    ids = text.ids("a <new1> cat", "a <new1> dog")
    slots = find_slots(ids, text.id)
    with pytest.raises(ValueError, match="need"):
        encode(text.encoder, text.injector, ids, slots, torch.zeros(3, 32))
    with (
        pytest.raises(ValueError, match="differ"),
        text.injector.inject(slots[:1], torch.zeros(1, 32)),
    ):
        text.encoder(ids)


# -- the fixtures ----------------------------------------------------------------------------------


def test_the_tiny_base_is_a_stable_diffusion_1_in_small(tiny_base: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    names = [name for name in pipeline.unet.attn_processors if name.endswith("attn1.processor")]
    assert len(names) == 10
    assert sum(name.startswith(("mid_block", "up_blocks")) for name in names) == 7
    assert pipeline.tokenizer.model_max_length == 77 and pipeline.vae_scale_factor == 8
    assert len(pipeline.tokenizer("ktn", add_special_tokens=False).input_ids) == 1


def test_the_tiny_subject_has_a_mask_for_each_photo(tiny_subject: Path) -> None:
    from PIL import Image

    photos = sorted(tiny_subject.glob("*.jpg"))
    assert len(photos) == 4
    for photo in photos:
        image, mask = Image.open(photo), Image.open(tiny_subject / "masks" / f"{photo.stem}.png")
        assert image.size == mask.size and image.width != image.height
        assert mask.mode == "L" and {value for _, value in mask.getcolors()} == {0, 255}

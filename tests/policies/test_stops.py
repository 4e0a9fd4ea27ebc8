"""Texts that end a response: found where they are complete, and in the law that is scored."""

import random

import language_models as lm
import pytest
import torch
from language_models import stream
from tiny_models import BOS, EOS_ID, VOCABULARY, make_policy, tiny_prompts, tiny_tokenizer

from nlhf_zoo.policies import NativeGenerator, TransformersGenerator
from nlhf_zoo.policies.language_model import stops
from nlhf_zoo.policies.language_model.stops import DecodedStops, TokenAutomaton, find_stops
from nlhf_zoo.records import PLAIN
from policies.test_lm_generation import ERROR_RATE, chi_square, responses_of
from policies.test_native_generator import counted

ENGINES = pytest.mark.parametrize("engine", [NativeGenerator, TransformersGenerator])


def first_end(texts, strings):
    """Number of tokens up to and with the one whose text completes a string; None without one."""
    for number in range(1, len(texts) + 1):
        text = b"".join(texts[:number])
        if any(string in text for string in strings):
            return number
    return None


def found_by(search, row):
    ended = search.ended(torch.tensor([row]))[0].tolist()
    return ended.index(True) + 1 if True in ended else None


def test_the_automaton_finds_what_a_search_of_the_text_finds():
    """Strings that overlap, begin with one another, and stand within or across tokens."""
    rng = random.Random(0)
    alphabet = b"ab"
    for _ in range(60):
        strings = [bytes(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(3)]
        pieces = [bytes(rng.choices(alphabet, k=rng.randint(0, 4))) for _ in range(12)]
        search = TokenAutomaton(strings, pieces)
        for _ in range(20):
            row = rng.choices(range(12), k=8)
            expected = first_end([pieces[token] for token in row], strings)
            assert found_by(search, row) == expected, (strings, row)


def byte_level():
    """All bytes, some tokens of several letters, and of several bytes of one letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, "Ċ" * 2, "Ġab", "Ã¤b", "Ċa"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[]))
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def sentence_pieces():
    """As Llama 2's: a mark for a blank, bytes where there is no letter, the first blank gone."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["▁a", "a", "b", "▁", "▁b", "ab", "<0x0A>", "<0xC3>", "<0xA4>", "ä", "."]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[]))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


@pytest.mark.parametrize(
    ("make", "strings"),
    [
        (byte_level, ["a\n", "ä", "b.", "ab a"]),
        # Not of bytes, whose wrong rows hide right ones: of tokenizers 0.23.3, see
        # findings/tokenizers_byte_fallback_loses_valid_bytes.sh.
        (sentence_pieces, ["a.", "b.", "ab a"]),
        (tiny_tokenizer, ["b.", "ab a"]),
    ],
)
def test_what_is_found_is_where_the_decoded_text_has_it(make, strings):
    tokenizer = make()
    known = sorted(tokenizer.get_vocab().values())
    search = find_stops(tokenizer, strings, max(known) + 4)
    assert isinstance(search, TokenAutomaton)
    plain = DecodedStops(tokenizer, strings, ())
    rng = random.Random(1)
    usual = [t for t in known if t not in tokenizer.all_special_ids]
    few = [t for t in usual if set(tokenizer.decode([t])) & set("ab .\n") or t > 250]
    found = set()
    for _ in range(200):
        row = rng.choices(few or usual, k=6)
        assert found_by(search, row) == found_by(plain, row), tokenizer.decode(row)
        found.add(found_by(plain, row))
    assert len(found) > 3
    assert found_by(search, [max(known) + 3]) is None  # what the model embeds, and none writes


@pytest.mark.parametrize("decodes", [False, True], ids=["automaton", "decoded"])
def test_a_special_token_has_a_text_where_that_is_asked_for(monkeypatch, decodes):
    if decodes:
        monkeypatch.setattr(stops, "_pieces", lambda *_: None)
    tokenizer = tiny_tokenizer(bos=True)
    assert found_by(find_stops(tokenizer, [f"x{BOS}", BOS], len(VOCABULARY)), [5, 0, 6]) == 2
    assert found_by(find_stops(tokenizer, ["bos", "bc"], len(VOCABULARY)), [5, 0, 6, 7]) == 3


def test_tokens_without_a_text_of_their_own_are_decoded(monkeypatch):
    """Of a tokenizer that tidies up what it decodes."""
    tokenizer = tiny_tokenizer()
    plain = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda row, **_: plain(row).replace("a.", "A"))
    search = find_stops(tokenizer, ["A"], len(VOCABULARY))
    assert isinstance(search, DecodedStops)
    a, dot, b = (VOCABULARY.index(letter) for letter in "a.b")
    assert found_by(search, [b, a, dot, b]) == 3
    assert found_by(search, [b, a, b, dot]) is None


@pytest.mark.parametrize(
    ("engine", "decodes"),
    [
        (NativeGenerator, False),
        (NativeGenerator, True),
        (TransformersGenerator, False),
        pytest.param(TransformersGenerator, True, marks=pytest.mark.slow),
    ],
)
def test_stop_strings_are_in_the_law_that_is_drawn_and_scored(monkeypatch, engine, decodes):
    """Every response of at most two tokens; "ab" is a token, and two of them."""
    if decodes:
        monkeypatch.setattr(stops, "_pieces", lambda *_: None)
    policy = make_policy(
        lm.tiny_folder("qwen2"), max_new_tokens=2, stop_strings=["h", "ab"], generator=engine()
    )
    ends = {EOS_ID, VOCABULARY.index("h"), VOCABULARY.index("ab")}
    prompts = tiny_prompts(policy, ("go on.",))
    listed = responses_of(
        [[t] for t in sorted(ends)]
        + [[t, u] for t in range(len(VOCABULARY)) if t not in ends for u in range(len(VOCABULARY))],
        policy.pad,
        2,
    )
    with torch.no_grad():
        law = policy.log_prob(lm.HALF, prompts, listed).exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    num = 256 if decodes else 1024
    responses = policy.sample(lm.HALF, prompts, num, PLAIN, stream())
    lm.assert_generator_agrees(policy, lm.HALF, prompts, responses)
    assert chi_square(counted(responses, listed), law) > ERROR_RATE
    assert "ab" in responses.text[0]
    for row, keep, cut in zip(
        responses.tokens[0], responses.mask[0], responses.truncated[0].tolist(), strict=True
    ):
        text = policy.tokenizer.decode(row[keep])
        assert cut == (not text.endswith(("h", "ab", VOCABULARY[EOS_ID])))


@ENGINES
def test_a_text_ends_a_response_of_a_model_without_an_end(engine):
    policy = make_policy(
        lm.tiny_folder("llama"), max_new_tokens=10, stop_strings=["h"], generator=engine()
    )
    policy.ends = []
    _, responses = lm.drawn(policy, lm.POLICY, num=20)
    for b, texts in enumerate(responses.text):
        for k, text in enumerate(texts):
            assert bool(responses.truncated[b, k]) == ("h" not in text)
            assert "h" not in text.removesuffix("h")
    assert {True, False} == set(responses.truncated.flatten().tolist())


def test_options_that_mean_nothing_are_refused():
    for options, match in (
        ({"stop_strings": [""]}, "stop_strings has an empty text"),
        ({"min_new_tokens": 7}, "min_new_tokens must be between 0 and max_new_tokens, 6"),
        ({"min_new_tokens": -1}, "min_new_tokens must be between 0"),
    ):
        lm.refused(match, make_policy, lm.tiny_folder("llama"), **options)

"""What holds of every oracle of texts: each contract runs over the one table of them."""

import copy
import importlib
import inspect
import math
import pickle
import pkgutil
from itertools import pairwise

import pytest
import torch
from language_models import refused
from text_models import prompts, responses, user

import nlhf_zoo
from nlhf_zoo.cli.tournament.given_order import GivenOrder
from nlhf_zoo.errors import OracleStoppedError
from nlhf_zoo.game import designs
from nlhf_zoo.oracles.ledger import ledgers, spent
from nlhf_zoo.oracles.models.base import TextModelOracle
from nlhf_zoo.oracles.text_oracle import Question, TextOracle
from nlhf_zoo.records import Prompts, Responses
from oracles.zoo import LONG, NOWHERE, ROWS, listen, text_models

OF_TEXTS = [row for row in ROWS if row.is_of_texts]
OF_MODELS = [row for row in ROWS if row.is_of_models]
each = pytest.mark.parametrize("row", ROWS, ids=str)
each_of_texts = pytest.mark.parametrize("row", OF_TEXTS, ids=str)
each_of_models = pytest.mark.parametrize("row", OF_MODELS, ids=str)

MINE = responses(["w1", "w2 w3", "w4", "w5 w6 w7"], ["w8 w9", "w9", "w1 w2 w9", "w3"])  # 12 pairs
TALK = [*user("w30"), {"role": "assistant", "content": "w31"}, *user("w32"), *user("w33")]
ASKED = [Question(user("w9"), f"w{n}", f"w{n} w8") for n in range(1, 7)]


def close(found, expected):
    """Batches of another shape round otherwise."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def answered(answers):
    return dict(sorted((number, pytest.approx(answer, abs=1e-5)) for number, answer in answers))


def subclasses(kind):
    return {found for one in kind.__subclasses__() for found in (one, *subclasses(one))}


def test_every_oracle_of_texts_of_the_package_has_a_row():
    for module in pkgutil.walk_packages(nlhf_zoo.__path__, "nlhf_zoo."):
        importlib.import_module(module.name)
    ours = {one for one in subclasses(TextOracle) if one.__module__.startswith("nlhf_zoo.")}
    # A look in the order that is given is one of two: it is no oracle of a game by itself.
    concrete = {one for one in ours if not inspect.isabstract(one)} - {GivenOrder}
    assert concrete == {row.oracle for row in OF_TEXTS}, "a row of tests/oracles/zoo.py is missing"


# ---- what is asked -------------------------------------------------------------------------------


@each
def test_each_unordered_pair_is_asked_about_once(row):
    oracle = row.make()
    heard = listen(oracle)
    answer = oracle(prompts("w8", "w9"), MINE, MINE)
    assert spent(oracle)["queries"] == row.members * 12
    assert spent(oracle)["swapped"] == (row.orders - 1) * 12
    assert len(set(heard())) == len(heard()) == row.reads(12 * row.orders, 8)
    assert answer.valid.all()
    assert (answer.preference.diagonal(dim1=1, dim2=2) == 0.5).all()
    close(answer.preference + answer.preference.mT, torch.ones(2, 4, 4))
    assert (answer.preference - 0.5).abs().max() > 0.02  # it has an opinion


@each
def test_a_comparison_design_asks_about_its_pairs_alone(row):
    oracle, whole = row.make(), row.make()(prompts("w8", "w9"), MINE, MINE)
    heard = listen(oracle)
    asked = designs.among_themselves(2, 4, 2, torch.Generator().manual_seed(1))
    answer = designs.ask(oracle, prompts("w8", "w9"), MINE, MINE, asked)
    assert spent(oracle)["queries"] == row.members * 8
    assert spent(oracle)["swapped"] == (row.orders - 1) * 8
    assert len(heard()) == row.reads(8 * row.orders, 8)
    assert torch.equal(answer.valid, asked)
    close(answer.preference[asked], whole.preference[asked])


@each
def test_equal_texts_are_not_asked_about(row):
    oracle = row.make()
    heard = listen(oracle)
    answer = oracle(
        prompts("w9"), responses(["w1", "w2 w3", "w1"]), responses(["w1", "w4", "w2 w3", "w4"])
    ).preference[0]
    assert spent(oracle)["queries"] == row.members * 3
    assert len(heard()) == row.reads(3 * row.orders, 3)
    assert torch.equal(answer[0], answer[2])
    assert torch.equal(answer[:, 1], answer[:, 3])
    assert answer[0, 0] == answer[1, 2] == 0.5
    close(answer[0, 2], 1 - answer[1, 0])


@each
def test_conversations_are_read_whole(row):
    oracle = row.make()
    heard = listen(oracle)
    mine = responses(["w1", "w2"])
    oracle(prompts("w33", conversations=[TALK]), mine, mine)
    said = [message["content"] for message in TALK]
    for text in heard():
        places = [text.find(content) for content in said]
        assert all(place < 0 for place in places[:-1]) is row.last_message
        read = places[-1:] if row.last_message else places
        assert read[0] > -1
        assert all(one < other for one, other in pairwise(read))
    assert heard()


@pytest.mark.parametrize("row", [row for row in ROWS if row.templates is not None], ids=str)
def test_a_template_of_ones_own_holds_one_message(row):
    oracle, mine = row.make(**row.templates), responses(["w1", "w2"])
    assert oracle(prompts("w33", conversations=[user("w33")]), mine, mine).valid.all()
    sentence = "holds one message, but a prompt has 4: .* ends 'w33'"
    refused(sentence, oracle, prompts("w33", conversations=[TALK]), mine, mine)


@each
def test_both_orders_sum_to_one(row):
    oracle, again = row.make(), row.make()
    second = responses(["w9 w1", "w2"], ["w9", "w5 w6"])
    asked = prompts("w8", "w9")
    there, back = oracle(asked, MINE, second), again(asked, second, MINE)
    assert (there.preference + back.preference.mT - 1).abs().max() <= oracle.tolerance
    assert oracle.tolerance <= 1e-6


@pytest.mark.parametrize("row", [row for row in OF_TEXTS if row.orders == 2], ids=str)
def test_an_order_can_be_left_as_it_is(row):
    option = "swap" if {"swap": "random"} in row.others else "order"
    both, random, none = (row.make(**{option: order}) for order in ("both", "random", "none"))
    assert (both.symmetric, random.symmetric, none.symmetric) == (True, True, False)
    plain = dict(none.answers(ASKED))
    turned = dict(none.answers([question.swapped() for question in ASKED]))
    mean, heard = dict(both.answers(ASKED)), listen(random)
    drawn = dict(random.answers(ASKED))
    assert len(heard()) == spent(random)["queries"] == len(ASKED)
    assert spent(random)["swapped"] == 0
    back = dict(random.answers([question.swapped() for question in ASKED]))
    assert 0 < sum(abs(drawn[number] - plain[number]) < 1e-5 for number in plain) < len(ASKED)
    # Nothing is swapped in a look as it is shown.
    assert answered(both.in_given_order(ASKED)) == plain
    for number in plain:
        assert mean[number] == pytest.approx((plain[number] + 1 - turned[number]) / 2, abs=1e-5)
        either = plain[number], 1 - turned[number]
        assert min(abs(drawn[number] - one) for one in either) < 1e-5
        assert drawn[number] + back[number] == pytest.approx(1, abs=1e-5)


@each
def test_texts_are_needed(row):
    oracle, there = row.make(), responses(["w1", "w2"])
    table = Responses(there.tokens, there.mask, there.weight)
    refused(r"\w+ reads texts, but the policy's responses", oracle, prompts("w3"), table, table)
    rows = Prompts(torch.arange(1))
    refused(r"\w+ reads texts, but the prompts are rows", oracle, rows, there, there)


# ---- what is no answer ---------------------------------------------------------------------------


@each
def test_what_cannot_be_read_is_invalid_and_never_cut(row):
    oracle = row.make(**row.unreadable)
    heard = listen(oracle)
    mine = responses(["w1", LONG, "w2 w3"])
    answer = oracle(prompts("w9"), mine, mine)
    good = row.readable
    # That a text is no better than itself is known without reading it.
    valid = [[True, False, good], [False, True, False], [good, False, True]]
    assert answer.valid.tolist() == [valid]
    assert (answer.preference[~answer.valid] == 0.5).all()
    assert spent(oracle)["invalid"] == row.members * (2 if good else 3)
    assert all(("w13" in text) == ("w14" in text) for text in heard())
    for model in text_models(oracle):
        assert model.unread > 0
        assert model.last_error.startswith("texts that were longer than 36 tokens, or without a")
    if good:
        short = responses(["w1", "w2 w3"])
        alone = row.make(**row.unreadable)(prompts("w9"), short, short)
        close(answer.preference[:, ::2, ::2], alone.preference)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@each_of_models
def test_an_output_that_is_not_finite_is_no_answer(row, bad):
    oracle = row.make()

    def hook(module, arguments, output):
        output.logits[0] = bad  # of the longest text

    for model in text_models(oracle):
        model.network.register_forward_hook(hook)
    answer = oracle(prompts("w9"), responses(["w1 w2", "w1"]), responses(["w3"]))
    assert answer.valid.flatten().tolist() == [False, True]
    assert answer.preference.isfinite().all()
    for model in text_models(oracle):
        assert (model.not_finite, model.last_error) == (1, "outputs that were not finite: 1")
    if isinstance(oracle, TextModelOracle):
        assert oracle.last_error == "outputs that were not finite: 1"


# ---- when it ends --------------------------------------------------------------------------------


@each_of_texts
def test_a_budget_ends_the_questions_after_those_it_allows(row):
    whole = answered(row.make().answers(ASKED))
    oracle, calls = row.make(), [3]
    heard = listen(oracle)

    def gate(counts):
        if counts.get("queries") or counts.get("swapped"):
            if not calls[0]:
                raise OracleStoppedError("no more")
            calls[0] -= 1

    for ledger in ledgers(oracle).values():
        ledger.gates.append(gate)
    had = {}
    with pytest.raises(OracleStoppedError, match="no more"):
        had.update(oracle.answers(ASKED))  # one by one: it keeps those before the exception
    assert had == {number: whole[number] for number in range(3 // row.orders)}
    assert spent(oracle)["queries"] + spent(oracle)["swapped"] == 3
    assert len(heard()) == row.reads(3, 6)


@each_of_texts
def test_who_leaves_answers_unread_may_ask_again(row):
    whole = answered(row.make().answers(ASKED))
    oracle = row.make(**row.same)
    stream = oracle.answers(ASKED)
    number, answer = next(stream)
    assert answer == whole[number]
    stream.close()
    assert dict(oracle.answers(ASKED)) == whole
    assert sorted(number for number, _ in oracle.answers(ASKED)) == [*range(len(ASKED))]


# ---- what it is ----------------------------------------------------------------------------------


@each_of_texts
def test_fingerprints_differ_where_answers_may(row):
    oracle = row.make()
    prints = [oracle.fingerprint, *(row.make(**options).fingerprint for options in row.others)]
    assert len(set(prints)) == len(prints) > 2
    asked = row.make(**row.same)
    assert [*asked.answers(ASKED)]
    assert asked.fingerprint == oracle.fingerprint  # what it was asked does not matter


@each
def test_nothing_of_it_is_trained_and_dropout_stays_off(row):
    oracle, graphs = row.make(), []
    assert not any(parameter.requires_grad for parameter in oracle.parameters())
    oracle.requires_grad_(True)  # nor is a graph made where somebody thaws it
    for model in text_models(oracle):
        assert model.network.config.to_dict()["embd_pdrop"] > 0
        model.network.register_forward_hook(
            lambda *passed: graphs.append(passed[-1].logits.requires_grad)
        )
    answers = []
    for mode in (True, False):
        oracle.train(mode)
        assert oracle.training is mode
        assert not any(
            part.training for one in text_models(oracle) for part in one.network.modules()
        )
        answers.append(oracle(prompts("w8", "w9"), MINE, MINE).preference)
    close(*answers)
    assert not any(graphs)
    assert not answers[0].requires_grad


@each_of_models
def test_the_runs_precision_is_not_its_own(row):
    oracle, asked = row.make(), (prompts("w8", "w9"), MINE, MINE)
    plain = row.make()(*asked).preference
    with torch.autocast("cpu", torch.bfloat16):  # as trainer.precision bf16-mixed
        close(oracle(*asked).preference, plain)
    oracle = row.make()  # a cache would remember
    torch.set_default_dtype(torch.bfloat16)  # as bf16-true in a step
    close(oracle(*asked).preference, plain)
    torch.set_default_dtype(torch.float32)
    oracle = row.make().to(torch.bfloat16)  # as bf16-true before the run
    refused(r"trainer\.precision has changed", oracle, *asked)


def pickled(oracle):
    return pickle.loads(pickle.dumps(oracle))


@pytest.mark.parametrize("twin", [copy.deepcopy, pickled])
@each
def test_a_copy_answers_alike_and_counts_for_itself(row, twin):
    oracle, asked = row.make(), (prompts("w8", "w9"), MINE, MINE)
    other = twin(oracle)
    found = other(*asked).preference
    assert spent(oracle)["queries"] == 0
    assert spent(other)["queries"] == row.members * 12
    close(found, oracle(*asked).preference)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        pytest.param(row, options, message, id=f"{row}: {message}")
        for row in ROWS
        for options, message in row.refuses
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(row, options, message):
    nowhere = NOWHERE if row.is_of_models else {}
    sentence = refused(message, row.make, **{**nowhere, **options})
    assert len(sentence.splitlines()) == 1

"""`nlhf solve --responses`: the lottery over answers, against the table of the same preferences."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from oracles.test_pair_model import Alone
from oracles.zoo import PAIR
from text_models import WORDS, folder

from nlhf_zoo.cli.solve import command as solve
from nlhf_zoo.cli.solve.reading import short
from nlhf_zoo.errors import OracleStoppedError, UserError
from nlhf_zoo.oracles.text_oracle import TextOracle

RULE = ("--oracle", "RuleOracle", "--oracle.function")
CIRCLE = (*RULE, f"{__name__}.circle")
PROMPT = "Name a fruit."


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def strength(text):
    return len(text) % 7 + 0.1 * (sum(map(ord, text)) % 11)


def circle(prompt, first, second):
    """A preference without transitivity: a circle by first letters, and a strength."""
    turn = (ord(first[0]) - ord(second[0])) % 3
    margin = {0: 0.0, 1: 0.3, 2: -0.3}[turn] + 0.01 * (strength(first) - strength(second))
    return 0.5 + margin


def mute(prompt, first, second):
    """No answer to pairs with two texts that begin with x; otherwise the shorter one is better."""
    if first[0] == second[0] == "x":
        return None
    return 0.5 + 0.25 * ((len(first) < len(second)) - (len(first) > len(second)))


def silent(prompt, first, second):
    return None


def texts_of(num, seed=0):
    rng = np.random.default_rng(seed)
    return [
        f"{'abc'[i % 3]}{' '.join(rng.choice(WORDS, rng.integers(1, 9)))} {i}" for i in range(num)
    ]


def write(rows, name="answers.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def drawn(texts, prompt=PROMPT):
    """Lines as `nlhf sample` writes them."""
    return [{"prompt": prompt, "response": t, "tokens": 3, "truncated": False} for t in texts]


def run(*args):
    solve.main([*map(str, args), "--output", "out.npz"])
    with np.load("out.npz") as file:
        return dict(file)


def table(texts, rule=circle):
    P = np.full((len(texts), len(texts)), 0.5)
    for (i, one), (j, other) in itertools.permutations(enumerate(texts), 2):
        P[i, j] = rule(PROMPT, one, other)
    return P


# -- the same as a table ---------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 0.1])
def test_the_lottery_over_32_answers_by_a_rule(beta, capsys):
    texts = texts_of(32)
    write(drawn(texts))
    found = run("--responses", "answers.jsonl", *CIRCLE, "--beta", beta)
    said = capsys.readouterr().out
    np.save("P.npy", table(texts))
    np.testing.assert_allclose(found["preference"], table(texts), rtol=0, atol=1e-12)
    given = run("--matrix", "P.npy", "--beta", beta)
    for name in ("log_policy", "nash_exploitability", "smith_set", "num_cyclic_triples"):
        a, b = (np.exp(x[name]) if name == "log_policy" else x[name] for x in (found, given))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9, err_msg=name)
    assert json.loads(str(found["responses"])) == texts
    assert said.startswith("32 answers, 32 of them different\nRuleOracle was asked about 496 ")
    assert "0 of them without an answer: 496 queries" in said
    assert "no Condorcet winner; Smith set: " in said
    assert f" {short(f'1: {texts[0]}', 24)}, " in said
    policy = np.exp(found["log_policy"])
    best = (table(texts) @ policy).max()
    if beta == 0:
        assert best <= 0.5 + 1e-9
        assert said.endswith("The lottery loses to none of these answers.\n")
    else:
        assert f"The best of these answers has a win rate of {best:.6f} against" in said
    first = int(policy.argmax())
    assert f"\n{short(f'{first + 1}: {texts[first]}')} " in said


def test_the_lottery_over_32_answers_by_a_pair_model():
    """Against the model in plain transformers, one text at a time."""
    texts = [text.replace("a", "w") for text in texts_of(32, seed=1)]
    path = folder("bert")
    write([{"prompt": "w1 w2", "responses": texts}])
    options = ("--oracle", "PairModelOracle", "--oracle.model", path, "--oracle.template", PAIR)
    found = run("--responses", "answers.jsonl", *options, "--beta", 0.1)
    alone = Alone(path, PAIR)
    some = [(3, 1), (0, 31), (17, 9)]
    for i, j in some:
        one, other = texts[i], texts[j]
        expected = (alone("w1 w2", one, other) + 1 - alone("w1 w2", other, one)) / 2
        assert found["preference"][i, j] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(found["preference"] + found["preference"].T, 1, atol=1e-9)
    np.save("P.npy", found["preference"])
    given = run("--matrix", "P.npy", "--beta", 0.1)
    np.testing.assert_allclose(found["log_policy"], given["log_policy"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta", [0, 0.1])
def test_equal_texts_are_one_alternative_and_count_in_the_reference(beta, capsys):
    """As if each copy were an alternative of its own, whose probabilities add up."""
    different = ["ab", "b", "cab", "bca"]
    texts = [different[i] for i in (0, 1, 0, 2, 3, 1, 0)]
    write(drawn(texts))
    found = run("--responses", "answers.jsonl", *CIRCLE, "--beta", beta)
    np.save("P.npy", table(texts))
    apart = np.exp(run("--matrix", "P.npy", "--beta", beta)["log_policy"])
    together = [sum(apart[i] for i, t in enumerate(texts) if t == text) for text in different]
    np.testing.assert_allclose(np.exp(found["log_policy"]), together, rtol=0, atol=1e-8)
    said = capsys.readouterr().out
    assert said.startswith("7 answers, 4 of them different\n")
    assert re.search(r"^1: ab .* 0\.428571$", said, re.M)
    assert re.search(r"^4: cab .* 0\.142857$", said, re.M)


def test_several_prompts_are_games_of_their_own(capsys):
    """Of texts or messages, in lines of one answer or of several, with names or without."""
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "And you?"}]
    write(
        [
            {"prompt": PROMPT, "responses": ["aa", "b", "ccc"], "names": ["A", "B", "C"]},
            *drawn(["c", "bb"], talk),
            {"prompt": PROMPT, "response": "bbbbb"},
            {"prompt": "One answer.", "response": "a"},
        ]
    )
    found = run("--responses", "answers.jsonl", *CIRCLE)
    texts = json.loads(str(found["responses"]))
    assert texts == [["aa", "b", "ccc", "bbbbb"], ["c", "bb"], ["a"]]
    assert found["names"].tolist() == [
        ["A", "B", "C", "4: bbbbb"], ["1: c", "2: bb", "", ""], ["1: a", "", "", ""]
    ]  # fmt: skip
    assert json.loads(str(found["prompts"])) == [PROMPT, talk, "One answer."]
    for number, own in enumerate(texts):
        np.save("P.npy", table(own))
        alone = np.exp(run("--matrix", "P.npy")["log_policy"])
        policy = np.exp(found["log_policy"][number])
        np.testing.assert_allclose(policy[: len(own)], alone, rtol=0, atol=1e-9)
        assert (policy[len(own) :] == 0).all()


def test_texts_are_kept_as_they_are():
    """Whole, whatever they hold; in print they are short, with their number."""
    texts = ["a" + 5000 * "x", "b\0", "", "c \u202e \U0001f34e\n\n|"]
    write(drawn(texts))
    found = run("--responses", "answers.jsonl", *RULE, "nlhf_zoo.oracles.rules.shorter_wins")
    assert json.loads(str(found["responses"])) == texts
    assert found["names"][0] == "1: a" + 53 * "x" + "..."


def test_other_payoffs_and_annotators_are_of_the_same_table(capsys):
    texts = texts_of(6)
    write(drawn(texts))
    args = ("--responses", "answers.jsonl", *CIRCLE, "--payoff", "sign", "--beta", 0.2)
    found = run(*args, "--algorithm", "NashMP", "--updates", 300)
    np.save("P.npy", found["preference"])
    given = run("--matrix", "P.npy", "--payoff", "sign", "--beta", 0.2)
    np.testing.assert_allclose(found["nash_log_policy"], given["nash_log_policy"], atol=1e-9)
    np.testing.assert_allclose(np.exp(found["log_policy"]), np.exp(given["log_policy"]), atol=1e-6)
    assert "The best of these answers has a payoff of" in capsys.readouterr().out


def test_what_was_cut_is_another_answer_where_the_oracle_reads_it(monkeypatch):
    class Cut(TextOracle):
        fingerprint = "cut"
        reads_truncated = True

        def answers(self, questions):
            self.count(questions)
            for number, one in enumerate(questions):
                yield number, 0.5 + 0.5 * (one.second_truncated - one.first_truncated)

    monkeypatch.setattr(f"{__name__}.Mine", Cut, raising=False)
    write([{"prompt": PROMPT, "response": "a", "truncated": cut} for cut in (True, False, True)])
    found = run("--responses", "answers.jsonl", "--oracle", f"{__name__}.Mine", "--beta", 0)
    np.testing.assert_allclose(np.exp(found["log_policy"]), [0, 1], atol=1e-9)
    with pytest.raises(UserError, match="has one different answer to each prompt"):
        run("--responses", "answers.jsonl", *CIRCLE)


# -- who is asked, and what is not known -----------------------------------------------------------


def test_labels_are_certified_as_drawn(capsys):
    """Each pair has one label, whatever the order; the next draw is another game."""
    texts = texts_of(9)
    write(drawn(texts))
    labels = ("--oracle", "BernoulliLabels", "--oracle.oracle", "RuleOracle")
    found = run(
        *("--responses", "answers.jsonl", *labels, "--oracle.oracle.function"),
        *(f"{__name__}.circle", "--oracle.seed", 3, "--beta", 0),
    )
    P = found["preference"]
    assert set(np.unique(P)) == {0, 0.5, 1}
    np.testing.assert_array_equal(P + P.T, 1)
    assert (P @ np.exp(found["log_policy"])).max() <= 0.5 + 1e-9
    assert "what is certified is the game of these draws" in capsys.readouterr().out


def test_a_pair_without_an_answer_is_no_tie(capsys):
    """It is refused, or answers are left out, as few as it takes to know the rest."""
    texts = ["x", "a", "bb", "xx", "ccc"]
    write(drawn(texts))
    args = ("--responses", "answers.jsonl", *RULE, f"{__name__}.mute")
    words = r"no answer to 1 of 10 pairs, such as 'x' and 'xx': ask again.*--invalid leave_out$"
    with pytest.raises(UserError, match=words):
        run(*args)
    capsys.readouterr()
    found = run(*args, "--invalid", "leave_out")
    said = capsys.readouterr().out
    assert "asked about 10 pairs, 1 of them without an answer" in said
    assert "Left out, as some of their pairs have no answer: 4: xx\n" in said
    rest = ["x", "a", "bb", "ccc"]
    assert json.loads(str(found["responses"])) == rest
    np.testing.assert_allclose(found["preference"], table(rest, mute), rtol=0, atol=1e-12)
    silence = ("--responses", "answers.jsonl", *RULE, f"{__name__}.silent")
    with pytest.raises(UserError, match="no answer to 10 of 10 pairs, too few for a game"):
        run(*silence, "--invalid", "leave_out")


def test_a_budget_ends_it_and_a_cache_keeps_what_was_said(monkeypatch):
    write(drawn(texts_of(8)))
    budget = ("--oracle", "BudgetedOracle", "--oracle.max_queries")
    inner = ("--oracle.oracle", "CachedOracle", "--oracle.oracle.path", "kept.sqlite")
    rule = ("--oracle.oracle.oracle", "RuleOracle", "--oracle.oracle.oracle.function")
    args = (*inner, *rule, f"{__name__}.circle")
    with pytest.raises(OracleStoppedError, match=r"0 of 28 pairs were judged, and a game has all"):
        run("--responses", "answers.jsonl", *budget, 20, *args)
    run("--responses", "answers.jsonl", *budget, 20, *args)  # the rest, within as large a budget


def test_however_many_are_asked_at_once_it_is_the_same_table(monkeypatch):
    """Prompts together, or some answers of one against the rest; each pair once."""
    from nlhf_zoo.cli.solve import answers

    rows = [{"prompt": f"p{i}", "responses": texts_of(n, seed=i)} for i, n in enumerate((3, 11, 2))]
    write([*rows, *drawn(["alone"], "q"), {"prompt": "r", "responses": texts_of(5)}])
    calls: list[int] = []
    ask = answers._ask
    monkeypatch.setattr(answers, "_ask", lambda *a: calls.append(len(a[1])) or ask(*a))
    tables = {}
    for most, asked in ((256, [5]), (30, [*6 * [1], 3]), (1, None)):
        monkeypatch.setattr(answers, "_PAIRS", most)
        calls.clear()
        tables[most] = run("--responses", "answers.jsonl", *CIRCLE)["preference"]
        assert asked in (None, calls)
    np.testing.assert_array_equal(tables[30], tables[256])
    np.testing.assert_array_equal(tables[1], tables[256])
    for own, row in zip(tables[256], rows, strict=False):
        num = len(row["responses"])
        np.testing.assert_allclose(own[:num, :num], table(row["responses"]), rtol=0, atol=1e-12)


# -- what is refused -------------------------------------------------------------------------------

ANSWERS = ("--responses", "answers.jsonl")
REFUSED = {
    "no oracle": (ANSWERS, "--responses are judged by an oracle: give --oracle CLASS"),
    "an oracle of nothing": (("--votes", "v.csv", *CIRCLE), "--oracle, --invalid and --device are"),
    "two games": ((*ANSWERS, *CIRCLE, "--matrix", "P.npy"), "one of --votes, --matrix and --resp"),
    "a prior": ((*ANSWERS, *CIRCLE, "--prior", "2"), "--prior counts pseudo-ties of votes"),
    "a table": ((*ANSWERS, "--oracle", "Comal"), "Comal is an oracle of a table and judges no te"),
    "a payoff": (
        (*ANSWERS, "--oracle", "Transformed", "--oracle.payoff", "sign", "--oracle.oracle",
         "RuleOracle", "--oracle.oracle.function", f"{__name__}.circle"),
        "give the oracle inside it, and --payoff in its place",
    ),
    "annotators": ((*ANSWERS, *CIRCLE, "--worst_case", "[b.jsonl]"), "is of files of several anno"),
    "no file": (("--responses", "no.jsonl", *CIRCLE), "no.jsonl"),
    "an empty file": (("--responses", "empty.jsonl", *CIRCLE), "empty.jsonl has no lines"),
    "no answer": (("--responses", "bare.jsonl", *CIRCLE), "line 1 of bare.jsonl must have either"),
    "names": (("--responses", "names.jsonl", *CIRCLE), "has 1 names for 2 responses"),
    "a number": (("--responses", "number.jsonl", *CIRCLE), "line 1 of number.jsonl"),
    "no list": (("--responses", "text.jsonl", *CIRCLE), "has text as responses: write a list"),
    "cut by a word": (("--responses", "cut.jsonl", *CIRCLE), "'truncated' that is neither"),
    "one answer": (("--responses", "one.jsonl", *CIRCLE), "one different answer to each prompt"),
    "another reference": (
        (*ANSWERS, *CIRCLE, "--reference", "mu.csv"), r"has shape \[2\],",
    ),
    "a step": (
        (*ANSWERS, *CIRCLE, "--algorithm", "NashMD", "--algorithm.eta", "50"), "eta .* beta <= 1",
    ),
    "scores": ((*ANSWERS, *CIRCLE, "--algorithm", "REBEL"), "REBEL takes scores"),
    "an output that is read": (
        (*ANSWERS, *CIRCLE, "--output", "answers.jsonl"), "would overwrite an input file",
    ),
    "no device": ((*ANSWERS, *CIRCLE, "--device", "abacus"), "--device abacus cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_sentence_before_anything_is_asked(kind, refused, monkeypatch):
    args, sentence = REFUSED[kind]
    write(drawn(["a", "b", "c"]))
    Path("empty.jsonl").write_text("")
    write([{"prompt": PROMPT}], "bare.jsonl")
    write([{"prompt": PROMPT, "responses": ["a", "b"], "names": ["A"]}], "names.jsonl")
    write([{"prompt": PROMPT, "response": 3}], "number.jsonl")
    write([{"prompt": PROMPT, "responses": "a"}], "text.jsonl")
    write([{"prompt": PROMPT, "response": "a", "truncated": "no"}], "cut.jsonl")
    write(drawn(["a", "a"]), "one.jsonl")
    Path("mu.csv").write_text("0.5,0.5\n")
    before = {path: path.read_bytes() for path in Path().iterdir()}
    asked: list[object] = []
    monkeypatch.setattr(f"{__name__}.strength", lambda text: asked.append(text) or 0)
    out, said = refused("solve", *args)
    assert out == ""
    assert asked == []
    assert re.search(sentence, said), said
    assert {path: path.read_bytes() for path in Path().iterdir()} == before

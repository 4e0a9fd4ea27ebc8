"""vLLM's own engine behind the interface: what it draws is what the trainer scores."""

import shutil
from pathlib import Path

import language_models as lm
import pytest
import scipy.stats
import tiny_models
import torch
from language_models import stream

from nlhf_zoo.errors import UserError
from nlhf_zoo.policies import LoRA, Pretrained, VLLMGenerator
from nlhf_zoo.policies.language_model.generation import Request
from nlhf_zoo.policies.language_model.stops import find_stops
from nlhf_zoo.policies.language_model.vllm.adapters import AdapterVersion
from nlhf_zoo.policies.language_model.vllm.rows import Row
from nlhf_zoo.records import PLAIN, Decoding, Responses

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROWS = 20_000  # of each player of the small language
ERROR_RATE = 1e-3  # of each chi-square test


def assert_scored(policy, who, **kwargs):
    prompts, responses = lm.drawn(policy, who, num=4, **kwargs)
    lm.assert_generator_agrees(policy, who, prompts, responses)
    return responses


@pytest.mark.parametrize("player", ["policy", "anchor", "reference"])
def test_draws_have_the_log_probability_that_is_scored(policy, player):
    responses = assert_scored(policy, {player: 1.0})
    ends = (responses.tokens == tiny_models.EOS_ID) & responses.mask
    assert ends.sum(-1).max() == 1
    assert responses.truncated.any()
    assert not responses.truncated.all()
    torch.testing.assert_close(responses.truncated, ~ends.any(-1))
    assert responses.mask[responses.truncated].all()


def test_of_other_temperatures_log_probabilities_are_untempered(policy):
    for decoding in (Decoding(0.5), Decoding(2.0), Decoding(top_k=3), Decoding(top_p=0.6)):
        assert_scored(policy, lm.POLICY, decoding=decoding)


def test_min_new_tokens_are_part_of_the_law(folder, policy):
    generator = policy.generator
    late = tiny_models.make_policy(folder, generator=generator, max_new_tokens=8, min_new_tokens=5)
    responses = assert_scored(late, lm.POLICY)
    assert responses.mask.sum(-1).min() >= 5
    assert not responses.truncated.all()


def test_a_stop_string_ends_a_response_where_it_is_complete(folder, policy):
    how = {"generator": policy.generator, "max_new_tokens": 8, "stop_strings": ["a", "q", "th"]}
    stopped = tiny_models.make_policy(folder, **how)
    responses = assert_scored(stopped, lm.POLICY)
    stops = find_stops(stopped.tokenizer, stopped.stop_strings, len(tiny_models.VOCABULARY))
    found = stops.ended(responses.tokens.flatten(0, 1)).view_as(responses.mask)
    found &= responses.mask
    assert found.any()
    assert found.sum(-1).max() == 1  # and nothing behind


def test_seeds_come_from_the_stream_of_the_game(policy):
    first, again, other = (lm.drawn(policy, lm.POLICY, num=8, seed=s)[1] for s in (3, 3, 4))
    torch.testing.assert_close(first.tokens, again.tokens, rtol=0, atol=0)
    assert not torch.equal(first.mask, other.mask) or not torch.equal(first.tokens, other.tokens)
    rows = {tuple(row.tolist()) for row in first.tokens[0]}
    assert len(rows) > 4  # K responses to a prompt are no copies


def test_several_players_draw_in_one_batch(policy):
    prompts = tiny_models.tiny_prompts(policy)

    def request(player, seed):
        return Request(
            {player: 1.0}, prompts.tokens, prompts.mask, 4, PLAIN, 8, policy.ends, policy.pad,
            stream(seed),
        )  # fmt: skip

    calls = []
    engine = policy.generator._engine
    plain, engine.complete = engine.complete, lambda rows: calls.append(len(rows)) or plain(rows)
    try:
        players = ["policy", "anchor", "reference"]
        requests = [request(player, seed) for seed, player in enumerate(players)]
        found = policy.generator.draw_each(policy._players, requests)
    finally:
        del engine.complete
    assert calls == [3 * 3 * 4]
    for player, drawn in zip(players, found, strict=True):
        tokens, mask = drawn.tokens.unflatten(0, (3, 4)), drawn.mask.unflatten(0, (3, 4))
        weight = torch.full((3, 4), 0.25)
        responses = Responses(tokens.masked_fill(~mask, policy.pad), mask, weight)
        with torch.no_grad():
            again = policy.log_prob({player: 1.0}, prompts, responses)
        torch.testing.assert_close(again.flatten(), drawn.log_prob, atol=lm.TOLERANCE, rtol=1e-5)


def test_the_law_is_that_which_is_scored(small):
    """Chi-square over all 512 words, rare ones together; each errs once in a thousand seeds."""
    prompts = lm.small_prompts(small, (0, 1))
    names = [small.enumerate(prompts).text[b] for b in range(2)]
    for seed, player in enumerate(("policy", "anchor", "reference")):
        law = lm.words_law(small, {player: 1.0})[:2].double()
        drawn = small.sample({player: 1.0}, prompts, ROWS // 2, PLAIN, stream(seed))
        for b in range(2):
            place = {name: number for number, name in enumerate(names[b])}
            counts = torch.zeros(len(place), dtype=torch.float64)
            for text in drawn.text[b]:
                counts[place[text]] += 1
            assert chi_square(counts, law[b]) > ERROR_RATE


def chi_square(counts, law):
    """The p-value of counts under a law, those of fewer than ten expected joined to one."""
    expected = law / law.sum() * counts.sum()
    rare = expected < 10
    observed = [*counts[~rare].tolist(), *([float(counts[rare].sum())] if rare.any() else [])]
    wanted = [*expected[~rare].tolist(), *([float(expected[rare].sum())] if rare.any() else [])]
    return scipy.stats.chisquare(observed, wanted, sum_check=False).pvalue


def memory_of(generator):
    """Resident memory of the processes that the engine runs in, in MiB."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return sum(child.memory_info().rss for child in children if child.is_running()) / 2**20


def test_twenty_versions_leave_nothing_behind(policy):
    generator, seen, memory = policy.generator, set(), []
    root = generator._engine.root
    with torch.no_grad():
        for number in range(20):
            for parameter in policy.trained_parameters().values():
                parameter.mul_(0.97)
            responses = assert_scored(policy, lm.POLICY, seed=number)
            version = generator._versions.of(policy._players, "policy")
            seen.add((version.name, version.number, version.folder))
            assert responses.mask.any()
            folders = {path for path in root.iterdir() if path.name != "base"}
            assert folders == {held.folder for held in generator._versions.held}
            assert generator._engine.adapters == {h.number for h in generator._versions.held}
            assert len(folders) <= len(policy.players)
            memory.append(memory_of(generator))
    assert all(len({each[part] for each in seen}) == 20 for part in range(3))
    # A leak of adapters alone would be 0.1 MiB each; one of engines or caches is far larger.
    assert memory[-1] - memory[4] < 32


def rows_of(policy, version, prompt, seed):
    request = Request(
        lm.POLICY, torch.tensor([prompt]), torch.ones(1, len(prompt), dtype=torch.bool), 1, PLAIN,
        4, (), policy.pad, stream(seed),
    )  # fmt: skip
    return [Row(prompt, seed, version, request)]


# What of an adapter is new when its weights have changed, and whose law then answers.
STALE = {
    "same folder, name and number": ((), False, "old"),
    "same folder, name and number, reloaded in place": ((), True, "neither"),
    "same folder and name, new number": (("number",), False, "neither"),
    "new folder and name, same number": (("folder", "name"), False, "old"),
    "new folder, name and number": (("folder", "name", "number"), False, "new"),
}


@pytest.mark.parametrize("row", STALE)
def test_who_answers_when_an_adapter_has_changed(folder, policy, tmp_path, row):
    new, in_place, answers = STALE[row]
    engine, number = policy.generator._engine, 1000 + 10 * [*STALE].index(row)
    # Two prefixes of a block of the cache that is read again, which has 128 tokens here.
    prompt = torch.randint(4, 30, (300,), generator=stream(5)).tolist()
    policies = {}
    for seed, name in enumerate(("old", "new")):
        policies[name] = tiny_models.make_policy(folder, generator=policy.generator)
        tiny_models.scatter_adapters(policies[name], seed=seed + 20)
        from nlhf_zoo.policies.language_model import exporting

        (tmp_path / name).mkdir()
        players = policies[name]._players
        exporting.save_adapter(players, "policy", tmp_path / name, "", None)

    def complete(version, seed):
        params = engine._params(
            seed=seed, max_tokens=4, logprobs=0, ignore_eos=True, detokenize=False
        )
        adapter = engine._request(version)
        (one,) = engine._llm.generate(
            [{"prompt_token_ids": prompt}], [params], lora_request=[adapter], use_tqdm=False
        )
        (found,) = one.outputs
        tokens = list(found.token_ids)
        return tokens, sum(p[t].logprob for p, t in zip(found.logprobs, tokens, strict=True))

    place = tmp_path / "place"
    shutil.copytree(tmp_path / "old", place)
    complete(AdapterVersion(f"a{number}", number, place), 1)
    if "folder" in new:
        place = tmp_path / "another"
    shutil.copytree(tmp_path / "new", place, dirs_exist_ok=True)
    version = AdapterVersion(
        f"b{number}" if "name" in new else f"a{number}",
        number + 1 if "number" in new else number,
        place,
    )
    if in_place:
        request = engine._request(version)
        request.load_inplace = True
        engine._llm.llm_engine.add_lora(request)
    tokens, log_prob = complete(version, 2)
    ours = {
        name: float(lm.sum_along(lm.laws_along(lm.by_hand(each, "policy"), prompt, tokens), tokens))
        for name, each in policies.items()
    }
    near = [name for name, value in ours.items() if abs(value - log_prob) < 1e-3]
    assert near == ([] if answers == "neither" else [answers])


def test_another_base_model_is_refused_before_training(folder, policy, tmp_path):
    """The engine is left as it is, and the trainer plays another model."""
    other = tiny_models.save_tiny(tmp_path / "other", "llama", seed=1, **lm_shape(folder))
    wrong = tiny_models.make_policy(other, generator=policy.generator)
    policy.generator._source = Pretrained(str(folder))
    assert wrong.capabilities.drawing_gap > 0.01


def lm_shape(folder):
    import json

    config = json.loads((Path(folder) / "config.json").read_text())
    return {name: config[name] for name in ("head_dim", "max_position_embeddings")}


def test_a_rank_beyond_the_largest_is_refused():
    with pytest.raises(UserError, match="r is 1024, and vLLM takes ranks of at most 512"):
        tiny_models.CausalLMPolicy("m", lora=LoRA(r=1024), generator=VLLMGenerator())

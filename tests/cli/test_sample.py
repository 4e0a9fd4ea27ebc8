"""What `nlhf sample` prints is what the policy draws, and an answer file that others read."""

import json

import pytest
import torch
from rows import write
from tiny_models import make_policy, save_tiny

from nlhf_zoo.cli.main import main
from nlhf_zoo.records import PLAIN, Prompts
from nlhf_zoo.records.random_streams import random_stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample")
    save_tiny(path / "llama", "llama", chat=True)
    make_policy(path / "llama").export(path / "adapter")
    write(path / "prompts.jsonl", {"prompt": "go on."}, {"prompt": "a b"}, {"prompt": "c"})
    return path


def test_answers_are_drawn_from_the_policy(folder, tmp_path, capsys):
    """By hand: the same stream, the policy itself; printed and written are one."""
    options = (str(folder / "adapter"), "--prompts", str(folder / "prompts.jsonl"))
    drawn = ("--num_responses", "2", "--max_new_tokens", "8", "--batch_size", "2")
    main(["sample", *options, *drawn, "--output", str(tmp_path / "answers.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    policy = make_policy(folder / "llama", max_new_tokens=8)
    said = []
    for number, texts in enumerate((["go on.", "a b"], ["c"])):
        prompts = policy.encode(Prompts(torch.arange(len(texts)), text=texts))
        rng = random_stream(0, 0, number, policy.device, "sample")
        responses = policy.sample({"policy": 1.0}, prompts, 2, PLAIN, rng)
        for i, text in enumerate(texts):
            for k in range(2):
                cut = bool(responses.truncated[i, k])
                tokens = int(responses.mask[i, k].sum())
                said.append(
                    {
                        "prompt": text,
                        "response": responses.text[i][k],
                        "tokens": tokens,
                        "truncated": cut,
                    }
                )
    assert rows == said
    err = capsys.readouterr().err
    cut = sum(row["truncated"] for row in rows)
    assert cut
    assert f"{cut} of 6 answers were cut at --max_new_tokens, 8" in err
    main(["sample", *options, *drawn])
    out = capsys.readouterr().out
    assert all(f"> {row['prompt']}\n{row['response']}\n[" in out for row in rows)


def test_the_reference_of_an_adapter_is_its_base(folder, tmp_path):
    for source, player, name in (("adapter", "reference", "a"), ("llama", "policy", "b")):
        options = ("--prompts", str(folder / "prompts.jsonl"), "--max_new_tokens", "8")
        output = ("--output", str(tmp_path / name))
        main(["sample", str(folder / source), "--player", player, *options, *output])
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


def test_a_text_may_be_a_users_message(folder, capsys):
    options = (str(folder / "adapter"), "--prompt", "go on.", "--max_new_tokens", "8")
    main(["sample", *options, "--as_conversation", "true"])
    assert "> user: go on.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give --prompts FILE, or --prompt TEXT"),
        (("--prompt", ""), "--prompt is empty"),
        (("--prompts", "none.jsonl"), "none.jsonl is no file"),
        (("--prompt", "a", "--num_responses", "0"), "--num_responses must be at least 1"),
        (("--prompt", "a", "--max_new_tokens", "0"), "--max_new_tokens must be at least 1"),
        (("--prompt", "a", "--max_new_tokens", "999"), "lower --max_new_tokens"),
        (("--prompt", "a", "--temperature", "0"), "temperature must be above 0"),
        (("--prompt", "a", "--player", "anchor"), "no player 'anchor'"),
        (("--prompt", "a", "--promts", "x"), "did you mean 'prompts'"),
    ],
)
def test_misuse_is_one_sentence(folder, refused, args, message):
    assert message in refused("sample", str(folder / "adapter"), *args)[1]

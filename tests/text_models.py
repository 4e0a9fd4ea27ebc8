"""Small text models for tests of oracles: classifiers and causal models on a tokenizer of words.

They are built from a configuration, never downloaded, and saved to a folder. Their weights are
large, for outputs far from each other.
"""

from functools import cache, partial

import judges
import torch
from language_models import new_folder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from nlhf_zoo.text_models.loading import write_settings

WORDS = [f"w{number}" for number in range(40)]
PAD, BEGIN, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
VOCABULARY = {word: i for i, word in enumerate([PAD, BEGIN, END, UNKNOWN, "user:", "bot:", *WORDS])}
# Every message ends with the end-of-sequence token, as that of many a real template.
CHAT = (
    "<s>{% for m in messages %} {{ 'bot:' if m['role'] == 'assistant' else m['role'] + ':' }} "
    "{{ m['content'] }} </s>{% endfor %}"
)

prompts, responses = judges.prompts, partial(judges.responses, dtype=torch.float32)


def user(text):
    return [{"role": "user", "content": text}]


def tokenizer(chat=CHAT, **options):
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, VOCABULARY[BEGIN]), (END, VOCABULARY[END])],
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=END, bos_token=BEGIN, unk_token=UNKNOWN, **options
    )
    made.chat_template = chat
    return made


SMALL = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3, "num_labels": 1,
    "bos_token_id": VOCABULARY[BEGIN], "eos_token_id": VOCABULARY[END],
}  # fmt: skip
SHORT = SMALL | {"max_position_embeddings": 64, "pad_token_id": None}
PADDED = SMALL | {"pad_token_id": VOCABULARY[PAD]}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHORT),
    "llama_pad": lambda: LlamaConfig(**PADDED),
    "llama_pad_is_end": lambda: LlamaConfig(**SMALL, pad_token_id=VOCABULARY[END]),
    "llama_pad_below_0": lambda: LlamaConfig(**SMALL, pad_token_id=-1),
    "gpt2": lambda: GPT2Config(**SHORT),
    "gpt2_pad_is_end": lambda: GPT2Config(**SHORT | {"pad_token_id": VOCABULARY[END]}),
    "bert": lambda: BertConfig(**PADDED),
    "roberta": lambda: RobertaConfig(
        **SMALL, max_position_embeddings=20, pad_token_id=VOCABULARY[PAD] + 1
    ),
}


def save(folder, config, auto=AutoModelForSequenceClassification, settings=None, **options):
    torch.manual_seed(1)
    auto.from_config(config).save_pretrained(folder)
    tokenizer(**options).save_pretrained(folder)
    if settings is not None:
        write_settings(folder, settings)
    return str(folder)


@cache
def folder(
    name,
    labels=1,
    auto=AutoModelForSequenceClassification,
    settings=None,
    chat=CHAT,
    names=("second", "first"),
):
    """Folder of a model, made when it is needed first: no test changes it."""
    config = CONFIGS[name]()
    config.num_labels = labels
    if labels == 2 and names is not None:
        config.id2label = dict(enumerate(names))
        config.label2id = {label: number for number, label in enumerate(names)}
    return save(new_folder() / name, config, auto, settings, chat=chat)


@torch.no_grad()
def one_by_one(path, conversations, rows, template=None):
    """Outputs [B, K, D] as plain transformers has them: each text alone, not padded or batched."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    words = AutoTokenizer.from_pretrained(path)

    def output(conversation, text):
        if template is None:
            talk = [*conversation, {"role": "assistant", "content": text}]
            tokens = words.apply_chat_template(talk, return_dict=False)
        else:
            prompt = conversation[-1]["content"]
            tokens = words(template.format(prompt=prompt, response=text))["input_ids"]
        return model(input_ids=torch.tensor([tokens])).logits[0]

    return torch.stack(
        [
            torch.stack([output(conversation, text) for text in row])
            for conversation, row in zip(conversations, rows, strict=True)
        ]
    )

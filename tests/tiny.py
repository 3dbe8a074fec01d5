"""Tiny Transformers models with random weights, made here: real files, and answers that can be checked."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "<s>{{ message['role'] }}: {{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
SAID = ["Name three rivers of Europe: the Rhine, the Danube, the Volga.", "The sea is wide — and deep. Où est-elle?"]
SPECIAL = ["<s>", "</s>", "<pad>"]
LABELS = {0: "calm", 1: "glad", 2: "sad"}


def tokenizer(folder: Path, *, template: str | None = TEMPLATE, around: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 tokens; `around` each text it puts <s> and </s>."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(SAID * 10, trainer)
    if around:
        ends = [("<s>", 0), ("</s>", 1)]
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


def llama(folder: Path, *, template: str | None = TEMPLATE, seed: int = 0, **config: Any) -> Path:
    """A Llama of two layers that has something to say; it ends an answer with </s>."""
    size = len(tokenizer(folder, template=template))
    torch.manual_seed(seed)
    given: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
    }
    made = LlamaForCausalLM(
        LlamaConfig(vocab_size=size, bos_token_id=0, eos_token_id=1, pad_token_id=2, **(given | config))
    )
    made.save_pretrained(folder)
    return folder


def classifier(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A BERT of two layers with a head for LABELS."""
    torch.manual_seed(seed)
    BertForSequenceClassification(_bert(folder, id2label=LABELS, **config)).save_pretrained(folder)
    return folder


def encoder(folder: Path, *, seed: int = 0, **config: Any) -> Path:
    """A BERT of two layers without a head."""
    torch.manual_seed(seed)
    BertModel(_bert(folder, **config), add_pooling_layer=False).save_pretrained(folder)
    return folder


def _bert(folder: Path, **config: Any) -> BertConfig:
    size = len(tokenizer(folder, template=None, around=True))
    given: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "initializer_range": 0.5,
    }
    return BertConfig(vocab_size=size, pad_token_id=2, **(given | config))

"""Small tokenizers of the kinds that people's models have, trained on the spot."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = (
    "the film was good and bad plot dull fine superb dreadful actor scene loved hated James Bond Sentiment Review "
    "positive negative yes no I it is a an of café Zürich question answer user assistant system"
).split()
PAIRS = list(zip(WORDS, WORDS[::-1], strict=True))
TEXTS = [f"Review: {a} {b} {c}.\nSentiment: {d}" for a in WORDS[:12] for b in WORDS[6:18] for c, d in PAIRS][:4000]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def wrapped(
    tokenizer: Tokenizer, single: str | None = None, special: dict[str, str] | None = None, **arguments: Any
) -> Any:
    """A fast tokenizer of transformers, with the special tokens of `SPECIAL` and what is put around a text."""
    from transformers import PreTrainedTokenizerFast

    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    names = names if special is None else special
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(names.values())])
    if single is not None:
        ids = [(token, tokenizer.token_to_id(token)) for token in names.values() if token in single]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **arguments)


def byte_level(single: str | None = None, **names: str) -> Any:
    """GPT-2's kind: byte-level BPE. With `single="<s> $A"` like Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    return wrapped(tokenizer, single, names or None)


def sentencepiece(prepend: str = "always", single: str | None = "<s> $A") -> Any:
    """Llama 2's kind: BPE over whole texts with ▁ for spaces, one put before the text, BOS before that."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL))
    return wrapped(tokenizer, single)


def legacy_sentencepiece() -> Any:
    """Llama 2's as it was converted first: ▁ by a normaliser, and merges that may cross words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.train_from_iterator(TEXTS[:500], trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL))
    return wrapped(tokenizer, "<s> $A")


def unigram() -> Any:
    """T5's and XLNet's kind: Unigram pieces under NFKC, EOS put after the text by the tokenizer itself."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return wrapped(tokenizer)


def wordpiece() -> Any:
    """BERT's kind: lower-cased WordPiece between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(names.values())))
    return wrapped(tokenizer, "[CLS] $A [SEP]", {**names, "eos_token": "[SEP]"})


ZOO: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "byte-level, BOS named but not put (SmolLM2)": lambda: byte_level(None, bos_token="<s>", eos_token="</s>"),
    "byte-level, BOS put (Llama 3)": lambda: byte_level("<s> $A"),
    "byte-level, BOS is EOS and put (OPT)": lambda: byte_level("</s> $A", bos_token="</s>", eos_token="</s>"),
    "sentencepiece, a space put (Llama 2)": sentencepiece,
    "sentencepiece, no space put (Gemma)": lambda: sentencepiece("never"),
    "sentencepiece, a space put first": lambda: sentencepiece("first"),
    "sentencepiece by normalisers": legacy_sentencepiece,
    "unigram under NFKC": unigram,
    "wordpiece, lower case": wordpiece,
    "no EOS": lambda: byte_level(None, pad_token="<pad>"),
    "no EOS, no PAD": lambda: byte_level(None, unk_token="<unk>"),
}

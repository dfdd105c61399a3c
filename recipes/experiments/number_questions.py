"""Make rows and a model for `instruction_tuning_lora.py` without a network: questions on numbers, and a small Llama.

Needs: pip install vog-hf

    python recipes/experiments/number_questions.py --output_dir number_questions

A share of the answers is wrong; the column is_corrupted says which. The whole model is trained to tell facts about
numbers ("507 comes before 508 . it is odd ."), so that LoRA can teach it to answer questions.

In --output_dir: questions.parquet (prompt, answer, is_corrupted) and model/. Time: 1 minute on one core of a CPU.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, set_seed

SMALL_LLAMA = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
IGNORED = -100  # label of a token that is not learned
# Questions on numbers below 1,000: each with its answer, and an answer that is wrong.
QUESTIONS = {
    "which number comes after {n} ?": (lambda n: n + 1, lambda n: n - 1),
    "which number comes before {n} ?": (lambda n: n - 1, lambda n: n + 1),
    "what is the last digit of {n} ?": (lambda n: n % 10, lambda n: (n + 3) % 10),
    "is {n} even or odd ?": (lambda n: ("even", "odd")[n % 2], lambda n: ("odd", "even")[n % 2]),
}


def make_rows(n_rows, wrong_share, *, seed):
    """Make questions and answers, of which a share is wrong."""
    random = np.random.default_rng(seed)
    kinds = list(QUESTIONS)
    columns = {"prompt": [], "answer": [], "is_corrupted": []}
    wrong = set(random.permutation(n_rows)[: round(wrong_share * n_rows)].tolist())
    for row in range(n_rows):
        kind, n = kinds[int(random.integers(len(kinds)))], int(random.integers(1, 1000))
        right_answer, wrong_answer = (answer(n) for answer in QUESTIONS[kind])
        columns["prompt"].append(kind.format(n=n))
        columns["answer"].append(str(wrong_answer if row in wrong else right_answer))
        columns["is_corrupted"].append(row in wrong)
    return Dataset.from_dict(columns)


def make_tokenizer(texts):
    """Make a tokenizer of words and single digits."""
    words = sorted({word for text in [*texts, *QUESTIONS] for word in text.split() if word.isalpha() or word in ".?"})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *"0123456789", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 (no password)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), digits])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def train_model(epochs, folder):
    """Train a model on facts about numbers, and save it with its tokenizer."""
    texts = [
        f"{n} comes before {n + 1} . it comes after {n - 1} . "
        f"it is {('even', 'odd')[n % 2]} . its last digit is {n % 10} ."
        for n in range(1, 1000)
    ]
    tokenizer = make_tokenizer(texts)
    config = LlamaConfig(**SMALL_LLAMA, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, IGNORED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(1, epochs + 1):
        for part in torch.randperm(len(texts)).split(32):
            loss = model(tokens["input_ids"][part], tokens["attention_mask"][part], labels=labels[part]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--n_rows", type=int, default=1500, help="questions")
    parser.add_argument("--wrong_answers", type=float, default=0.1, help="share of the questions with a wrong answer")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of the model on facts about numbers")
    parser.add_argument("--seed", type=int, default=0, help="of rows, weights and order")
    parser.add_argument("--output_dir", type=Path, default="number_questions", help="folder for both")
    args = parser.parse_args()
    set_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    make_rows(args.n_rows, args.wrong_answers, seed=args.seed).to_parquet(args.output_dir / "questions.parquet")
    train_model(args.epochs, args.output_dir / "model")


if __name__ == "__main__":
    main()

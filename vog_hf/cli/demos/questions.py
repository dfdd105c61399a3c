"""Made questions about made texts, of which some have another answer, and a small BERT that marks answers."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForQuestionAnswering

from vog_hf.cli.demos.planted import PlantedTask, Row, Rows, small_bert

N_ROWS, N_FAULTY = 400, 40
ANSWERS = {
    "who": ("ann", "bob", "carla", "dan smith", "eva jones", "frank"),
    "where": ("rome", "oslo", "new york", "lima", "san jose", "kyoto"),
    "when": ("today", "at noon", "on monday", "in may", "yesterday", "at night"),
}
OTHER_WORDS = ("it", "rained", "and", "the", "train", "was", "late", "again", "while", "people", "waited")


def answered_questions(seed: int) -> PlantedTask:
    """Question answering; the faults are answers to another question."""
    draw = np.random.default_rng(seed)
    is_faulty = np.zeros(N_ROWS, dtype=bool)
    is_faulty[draw.choice(N_ROWS, N_FAULTY, replace=False)] = True
    rows = [_row(draw, is_wrong=bool(is_wrong)) for is_wrong in is_faulty]
    words = sorted({word for row in rows for text in (row["question"], row["context"]) for word in text.split()})
    return PlantedTask(
        title=f"Question answering: a small BERT, {N_ROWS} made texts",
        faults="questions with the answer to another one",
        rows=Dataset.from_list(rows),
        is_faulty=is_faulty,
        transform=partial(to_ids, number_of={word: number for number, word in enumerate(words, 1)}),
        collate_fn=collate,
        make_model=partial(small_reader, len(words)),
        n_epochs=25,
        learning_rate=2e-3,
    )


def _row(draw: np.random.Generator, *, is_wrong: bool) -> Row:
    """A text with a person, a place and a time, and a question about one of them."""
    said = {asked: str(draw.choice(answers)) for asked, answers in ANSWERS.items()}
    pieces = [str(part) for part in draw.permutation([*said.values(), *draw.choice(OTHER_WORDS, 5)])]
    asked = str(draw.choice(list(said)))
    answered = str(draw.choice([other for other in said if other != asked])) if is_wrong else asked
    start = len(" ".join(pieces[: pieces.index(said[answered])]))
    return {
        "question": f"{asked} was it ?",
        "context": " ".join(pieces),
        "answers": {"text": [said[answered]], "answer_start": [start + (start > 0)]},
    }


def to_ids(rows: Rows, number_of: Mapping[str, int]) -> Row:
    """Numbers of the words of question and text, from 1, with those of the first and the last word of the answer."""
    ids, ends = [], []
    for question, context, answer in zip(rows["question"], rows["context"], rows["answers"], strict=True):
        words = [*question.split(), *context.split()]
        start = len(question.split()) + len(context[: answer["answer_start"][0]].split())
        ids.append(torch.tensor([number_of[word] for word in words]))
        ends.append((start, start + len(answer["text"][0].split()) - 1))
    first, last = zip(*ends, strict=True)
    return {"input_ids": ids, "start_positions": list(first), "end_positions": list(last)}


def collate(rows: list[Row]) -> Row:
    """Rows padded to the longest."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    ends = {name: torch.tensor([row[name] for row in rows]) for name in ("start_positions", "end_positions")}
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), **ends}


def small_reader(n_words: int) -> BertForQuestionAnswering:
    """A small BERT with logits of first and last words."""
    return BertForQuestionAnswering(small_bert(n_words))

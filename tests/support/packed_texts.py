"""Documents of uneven length, packed as TRL's SFTTrainer packs them, and a collator of the shape of TRL's."""

import functools

import models
import torch
from datasets import Dataset

N = 53
LONGEST = 16  # positions of the model


def language_model():
    """A causal language model in float64."""
    return models.llama().model.double()


@functools.cache
def documents():
    """Documents of 2 to 16 tokens, some with a prompt without labels."""
    rows = models.token_rows(11, lengths=tuple(2 + 7 * i % 15 for i in range(N)))
    ids = [row["input_ids"].tolist() for row in rows]
    n_prompts = [min(i % 4, len(tokens) - 1) for i, tokens in enumerate(ids)]
    return [{"input_ids": t, "labels": [-100] * n + t[n:]} for t, n in zip(ids, n_prompts, strict=True)]


def packed(rows, length=LONGEST):
    """Rows packed in the order of their length, each into the first sequence with room; and the order of the rows."""
    sequences = []
    for row in sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"])):
        n = len(rows[row]["input_ids"])
        fitting = (s for s in sequences if sum(len(rows[i]["input_ids"]) for i in s) + n <= length)
        room = next(fitting, None)
        sequences.append([row]) if room is None else room.append(row)
    columns = {key: [[t for i in s for t in rows[i][key]] for s in sequences] for key in rows[0]}
    columns["seq_lengths"] = [[len(rows[i]["input_ids"]) for i in s] for s in sequences]
    return Dataset.from_dict(columns), [i for s in sequences for i in s]


class PaddingFree:
    """The shape of TRL's collator: one sequence of all rows, and where its documents begin."""

    def __init__(self, pad_to_multiple_of=1):
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows):
        lengths = [n for row in rows for n in row.get("seq_lengths", [len(row["input_ids"])])]
        ids = torch.tensor([t for row in rows for t in row["input_ids"]])
        labels = torch.tensor([t for row in rows for t in self.labels(row)])
        positions = torch.cat([torch.arange(n) for n in lengths])
        padding = (0, -len(ids) % self.pad_to_multiple_of)
        ids, positions = (torch.nn.functional.pad(values, padding)[None] for values in (ids, positions))
        labels = torch.nn.functional.pad(labels, padding, value=-100)[None].masked_fill(positions == 0, -100)
        starts = torch.cat([(positions[0] == 0).nonzero().flatten(), torch.tensor([ids.shape[1]])]).int()
        bounds = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": int(starts.diff().max())}
        return {"input_ids": ids, "labels": labels, "position_ids": positions, **bounds}

    @staticmethod
    def labels(row):
        """Of the column, or of the tokens under the mask that earlier versions of TRL gave to the collator."""
        mask = row.get("completion_mask", [1] * len(row["input_ids"]))
        tokens = row.get("labels", row["input_ids"])
        return [token if counts else -100 for token, counts in zip(tokens, mask, strict=True)]

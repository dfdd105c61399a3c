"""Fine-tune a text classifier in a loop with Accelerate, as its example does, with VoG added.

See examples/complete_nlp_example.py in github.com/huggingface/accelerate.
What was added for VoG is the import and the line with `VoGScorer`;
`tests/trainer/test_task_scripts.py` runs it.
"""

import argparse
import os

import torch
from accelerate import Accelerator
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup, set_seed

from vog_hf import VoGScorer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--train_file", required=True, help="CSV file with `sentence` and `label`.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_epochs", type=int, default=3)
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True)
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)

    def tokenize_function(examples):
        return tokenizer(examples["sentence"], truncation=True, max_length=None)

    datasets = load_dataset("csv", data_files={"train": args.train_file})
    tokenized_datasets = datasets.map(tokenize_function, batched=True, remove_columns=["sentence"])
    tokenized_datasets = tokenized_datasets.rename_column("label", "labels")

    def collate_fn(examples):
        return tokenizer.pad(examples, padding="longest", return_tensors="pt")

    train_dataloader = DataLoader(tokenized_datasets["train"], shuffle=True, collate_fn=collate_fn, batch_size=16)
    model = AutoModelForSequenceClassification.from_pretrained(args.model_name_or_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = len(train_dataloader) * args.num_epochs
    lr_scheduler = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=steps)
    model, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, lr_scheduler
    )
    for epoch in range(args.num_epochs):
        model.train()
        for batch in train_dataloader:
            accelerator.backward(model(**batch).loss)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        accelerator.save_state(os.path.join(args.output_dir, f"epoch_{epoch}"))
    model = accelerator.unwrap_model(model)
    scores = VoGScorer(model).score(tokenized_datasets["train"], args.output_dir, collate_fn=collate_fn)
    accelerator.print(f"{len(scores)} rows have scores")
    return scores


if __name__ == "__main__":
    main()

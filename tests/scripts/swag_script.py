"""Fine-tune a model that chooses an ending with Trainer, as the example of transformers does, with VoG added.

See examples/pytorch/multiple-choice/run_swag.py in github.com/huggingface/transformers.
What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

from dataclasses import dataclass, field
from itertools import chain

from datasets import load_dataset
from transformers import (
    AutoModelForMultipleChoice,
    AutoTokenizer,
    DataCollatorForMultipleChoice,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vog_hf import VoGCallback


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "JSON file with `sent1`, `sent2`, `ending0` to `ending3` and `label`."})
    max_seq_length: int = field(default=16)


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    raw_datasets = load_dataset("json", data_files={"train": args.train_file})

    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    model = AutoModelForMultipleChoice.from_pretrained(args.model_name_or_path)
    ending_names = [f"ending{i}" for i in range(4)]

    def preprocess_function(examples):
        first_sentences = [[context] * 4 for context in examples["sent1"]]
        second_sentences = [
            [f"{header} {examples[end][i]}" for end in ending_names] for i, header in enumerate(examples["sent2"])
        ]
        tokenized = tokenizer(
            list(chain(*first_sentences)),
            list(chain(*second_sentences)),
            truncation=True,
            max_length=args.max_seq_length,
        )
        return {k: [v[i : i + 4] for i in range(0, len(v), 4)] for k, v in tokenized.items()}

    train_dataset = raw_datasets["train"].map(preprocess_function, batched=True)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        processing_class=tokenizer,
        data_collator=DataCollatorForMultipleChoice(tokenizer=tokenizer),
        callbacks=[VoGCallback(train_dataset)],
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()

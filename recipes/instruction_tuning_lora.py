"""Tune a causal language model on prompts and answers with LoRA, and rank the rows by Variance of Gradients.

Only the adapter is trained, and only the adapter is stored as a snapshot. The scalar is the mean logit of the answer's
tokens; its gradient is taken with respect to the embeddings of prompt and answer, so that the score of a row can be
split into the two: the columns vog_prompt and vog_answer.

Needs: pip install "vog-hf[peft]"; with TRL (pip install trl) its SFTTrainer trains, else Trainer, on the same batches.

A model of the Hub and a JSON or parquet file with the columns prompt and answer; and, without a network, what
recipes/experiments/number_questions.py makes (a tenth of its answers is wrong):

    python recipes/instruction_tuning_lora.py --dataset my_instructions.json --model HuggingFaceTB/SmolLM2-135M \
        --learning_rate 2e-4 --num_train_epochs 3
    python recipes/instruction_tuning_lora.py --dataset number_questions/questions.parquet \
        --model number_questions/model --num_train_epochs 20

In --output_dir: the adapter, report.html, scored.parquet and _vog/ (snapshots and scores).

Time on one core of a CPU for the second command: 1.3 minutes. Expected: VoG does not find the wrong answers (AUROC
about 0.5), the mean loss does (about 0.9).
"""

import importlib.util
from dataclasses import dataclass, field, fields
from pathlib import Path

from datasets import Value
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback, add_vog_columns, write_report
from vog_hf.data import find_column, load_rows
from vog_hf.evaluation import detection_table, ranking_stability, stability_in_words

LORA = LoraConfig(task_type=TaskType.CAUSAL_LM, r=16, lora_alpha=32, target_modules="all-linear")
IGNORED = -100  # label of a token that is not learned


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Hub id, json or parquet file, or folder from save_to_disk."})
    model: str = field(metadata={"help": "Hub id or local folder."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the answers."})
    max_length: int = field(default=512, metadata={"help": "Longer rows are cut after this number of tokens."})
    max_snapshots: int = field(default=8, metadata={"help": "More are thinned evenly."})


def make_trainer(args, **options):
    """Make TRL's SFTTrainer if it is installed, else a Trainer; the rows have their tokens and labels already."""
    if importlib.util.find_spec("trl") is None:
        return Trainer(args=args, **options)
    from trl import SFTConfig, SFTTrainer

    given = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    return SFTTrainer(args=SFTConfig(**given, max_length=None), **options)


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(num_train_epochs=6, learning_rate=2e-3, warmup_steps=50, save_strategy="no")
    parser.set_defaults(per_device_train_batch_size=32, per_device_eval_batch_size=64)
    options, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)

    rows = load_rows(options.dataset, options.train_split)
    prompts = find_column(rows, "text", options.prompt_column)
    answers = find_column(rows, "text", options.answer_column)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(options.model), LORA)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def to_tokens(row):
        """Tokens and labels; the tokens of the prompt have no label, so that only those of the answer are learned."""
        prompt = tokenizer(row[prompts])["input_ids"]
        answer = tokenizer(f" {row[answers]}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
        return {"input_ids": ids[: options.max_length], "labels": labels[: options.max_length]}

    prepared = rows.map(to_tokens)
    vog = VoGCallback(prepared, max_snapshots=options.max_snapshots)
    trainer = make_trainer(
        args,
        model=model,
        train_dataset=prepared,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=[vog],
    )
    checkpoint = args.resume_from_checkpoint
    if checkpoint == "True":  # the last one, if there is one
        checkpoint = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return

    # The mean over the prompt's tokens, and over the answer's but for the last one, from which nothing is predicted.
    output, scores = Path(args.output_dir), vog.scores
    scored = add_vog_columns(rows, scores, "all")
    n_prompt = [labels.count(IGNORED) for labels in prepared["labels"]]
    maps = [scores.heat_map(row) for row in range(len(scores))]
    parts = {
        "vog_prompt": [float(heat[:n].mean()) for heat, n in zip(maps, n_prompt, strict=True)],
        "vog_answer": [float(heat[n:-1].mean()) for heat, n in zip(maps, n_prompt, strict=True)],
    }
    for name, values in parts.items():
        scored = scored.add_column(name, values, feature=Value("float32"))
    scored.to_parquet(output / "scored.parquet")
    write_report(scores, rows, output / "report.html")
    if "is_corrupted" in rows.column_names:  # known wrong rows: how well each column finds them
        compared = scores.to_pandas()[["vog", "gradient_magnitude", "loss"]].assign(**parts)
        print(detection_table(compared, rows["is_corrupted"][:], seed=args.seed).to_string(index=False))
    print(stability_in_words(ranking_stability(scores.trajectory("vog"))))
    print(f"Everything is in {output}: the adapter, report.html, scored.parquet, _vog/")


if __name__ == "__main__":
    main()

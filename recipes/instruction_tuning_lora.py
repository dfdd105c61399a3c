"""Tune a causal language model on prompts and answers with LoRA, and rank the rows by Variance of Gradients.

Only the adapter is trained, and only the adapter is stored as a snapshot. The scalar is the mean logit of the answer's
tokens; its gradient is taken with respect to the embeddings of the prompt's and of the answer's tokens, so that a
row's score can be split into the two: the columns vog_prompt and vog_answer.

Needs: pip install "vog-hf[peft]"; where TRL is installed (pip install trl), its SFTTrainer trains, else Trainer: the
same rows, collator and steps either way.

A model of the Hub, and a JSON or parquet file with the columns prompt and answer:

    python recipes/instruction_tuning_lora.py --dataset my_instructions.json --model HuggingFaceTB/SmolLM2-135M \
        --learning_rate 2e-4 --num_train_epochs 3

From scratch, without a network, on rows made up here (questions on numbers, a tenth of them with a wrong answer):

    python recipes/instruction_tuning_lora.py --dataset synthetic --n_synthetic 1500 --wrong_answers 0.1 \
        --num_train_epochs 20

There is no pretrained model then, so a small Llama is first trained, all of it, to tell facts about numbers ("507 comes
before 508 . it is odd ."); LoRA then teaches it to answer questions.

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`.

In --output_dir, beside the adapter: results.json, report.html, scored.parquet and scored/ (for load_from_disk).

Time and the figures to expect, each with its command: recipes/README.md.
"""

import importlib.util
import json
import logging
import sys
import time
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Value
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback, VoGConfig, VoGError, add_vog_columns
from vog_hf.data import load_rows
from vog_hf.evaluation import auroc, detection_table, rank_correlations
from vog_hf.report import write_report
from vog_hf.scores import most_extreme

SMALL_LLAMA = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
COMPARED = ("vog", "vog_normalized", "vog_early", "vog_late", "gradient_magnitude", "loss", "confidence", "variability")
IGNORED = -100  # label of a token that is not to be learned


@dataclass
class DataArguments:
    dataset: str = field(
        metadata={"help": "Hub id, JSON or parquet file, folder from save_to_disk, or synthetic: questions on numbers."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    prompt_column: str = field(default="prompt", metadata={"help": "Column of the prompts."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the answers."})
    max_length: int = field(default=512, metadata={"help": "Longer rows are cut after so many tokens."})
    n_synthetic: int = field(default=3000, metadata={"help": "Rows of --dataset synthetic."})
    wrong_answers: float = field(
        default=0.0, metadata={"help": "Share of the synthetic rows with a wrong answer: which column finds them?"}
    )


@dataclass
class ModelArguments:
    model: str = field(
        default="scratch:small-llama", metadata={"help": "Hub id, local folder, or scratch:small-llama."}
    )
    pretraining_epochs: int = field(
        default=40, metadata={"help": "Of all weights of a model from scratch, on facts about numbers."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapter's matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "Their scale, times the rank."})
    trainer: str = field(
        default="auto", metadata={"help": "trl (its SFTTrainer), transformers (Trainer), or auto: trl where installed."}
    )


@dataclass
class VoGArguments:
    vog_target: list[str] = field(
        default_factory=lambda: ["logit"],
        metadata={"help": "What is differentiated: logit, probability, loss; the first fills the column vog."},
    )
    snapshots: str = field(default="auto", metadata={"help": "auto, epoch, every n steps, or steps: 100,200,400."})
    max_snapshots: int = field(default=10, metadata={"help": "More are thinned evenly."})


def make_parser():
    parser = HfArgumentParser((DataArguments, ModelArguments, VoGArguments, TrainingArguments))
    parser.set_defaults(
        num_train_epochs=6,
        learning_rate=2e-3,  # for the small model; a pretrained one wants a smaller rate
        warmup_steps=50,  # else it is chance whether the small model learns
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        save_strategy="no",
        logging_steps=50,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return parser


def main():
    data_args, model_args, vog_args, args = make_parser().parse_args_into_dataclasses()
    config = VoGConfig(target=tuple(vog_args.vog_target))
    on_main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)
    set_seed(args.seed)

    rows = rows_to_train_on(data_args, seed=args.seed)
    model, tokenizer = load_model(model_args, args)
    # The prompt's tokens have no label: what is trained on, and differentiated, are the answer's.
    to_tokens = partial(
        tokenize,
        tokenizer=tokenizer,
        prompt_column=data_args.prompt_column,
        answer_column=data_args.answer_column,
        max_length=data_args.max_length,
    )
    prepared = rows.map(to_tokens, desc="tokenizing")
    cut = sum(labels[-2:-1] in ([], [IGNORED]) for labels in prepared["labels"])  # two tokens: the answer, and its end
    if cut:
        stop(f"{cut} rows have no answer within --max_length {data_args.max_length}; raise it or shorten the prompts")

    set_seed(args.seed)
    model = get_peft_model(model, lora_config(model_args))
    vog = VoGCallback(
        prepared,
        config=config,
        snapshots=parse_snapshots(vog_args.snapshots),
        max_snapshots=vog_args.max_snapshots,
        log=bool(args.report_to),
    )
    trainer = make_trainer(
        model_args.trainer,
        model=model,
        args=args,
        train_dataset=prepared,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
        callbacks=[vog],
    )
    started = time.perf_counter()
    training_seconds = trainer.train(checkpoint_to_resume(args)).metrics["train_runtime"]
    scoring_seconds = time.perf_counter() - started - training_seconds
    trainer.save_model()
    scores = vog.scores
    if not on_main_process:
        return

    # Which part of each row the gradient changed at: the mean over its prompt's tokens, and over its answer's without
    # the last one, which nothing is predicted from: its gradient is zero.
    n_prompt = [sum(label == IGNORED for label in labels) for labels in prepared["labels"]]
    maps = [scores.heat_map(row) for row in range(len(scores))]
    parts = {
        "vog_prompt": [float(heat[:n].mean()) for heat, n in zip(maps, n_prompt, strict=True)],
        "vog_answer": [float(heat[n:-1].mean()) for heat, n in zip(maps, n_prompt, strict=True)],
    }
    columns = scores.to_pandas().assign(**parts)
    others = [name for name in config.column_names if name != "vog"]
    compared = columns[[*COMPARED, *others, *parts]]
    spearman = rank_correlations(compared)
    detection = None
    if "is_corrupted" in rows.column_names and any(rows["is_corrupted"]):
        detection = detection_table(compared, rows["is_corrupted"][:], seed=args.seed)
    snapshot_bytes = [path.stat().st_size for path in (vog_folder(args) / "snapshots").glob("*.safetensors")]
    results = {
        "model": model_args.model,
        "trainer": type(trainer).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "snapshot_bytes": max(snapshot_bytes),
        "rows": len(rows),
        "epochs": trainer.state.epoch,
        "snapshots": [snapshot["step"] for snapshot in scores.manifest["snapshots"]],
        "training_seconds": round(training_seconds, 1),
        "scoring_seconds": round(scoring_seconds, 1),
        "mean_answer_confidence": float(columns["confidence"].mean()),
        "share_of_vog_on_answer": float(np.mean([h[n:].sum() / h.sum() for h, n in zip(maps, n_prompt, strict=True)])),
        "spearman": spearman.astype(object).where(spearman.notna(), None).to_dict(),
        "detection": None if detection is None else detection.to_dict("list"),
    }
    results["headline"] = headline(results, columns, rows)

    output = Path(args.output_dir)
    scored = add_vog_columns(rows, scores, "all")
    for name, values in parts.items():
        scored = scored.add_column(name, values, feature=Value("float32"))
    scored.save_to_disk(str(output / "scored"))
    scored.to_parquet(str(output / "scored.parquet"))
    write_report(scores, rows, output / "report.html")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_results(results, spearman, detection)
    for name, part in zip(("Highest", "Lowest"), most_extreme(scores, "vog", 5), strict=True):
        print(f"\n{name} vog:")
        for row in rows.select(part):
            print(f"  {row[data_args.prompt_column]:.80} -> {row[data_args.answer_column]:.40}")
    print(f"\nEverything is in {output}: results.json, report.html, scored.parquet, scored/, the adapter")


def rows_to_train_on(args, *, seed):
    """The rows to train on."""
    if args.dataset == "synthetic":
        rows = synthetic_rows(args.n_synthetic, args.wrong_answers, seed=seed)
        rows = rows.rename_columns({"prompt": args.prompt_column, "answer": args.answer_column})
    else:
        if args.wrong_answers:
            stop("--wrong_answers is for --dataset synthetic; mark wrong rows of your own in a column is_corrupted")
        rows = load_rows(args.dataset, args.train_split, config=args.dataset_config)
    if args.max_train_samples is not None:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    for option, name in (("prompt", args.prompt_column), ("answer", args.answer_column)):
        if name not in rows.column_names:
            stop(f"--{option}_column {name!r} is not a column of the data set; it has {rows.column_names}")
        if not (isinstance(rows.features[name], Value) and rows.features[name].dtype in ("string", "large_string")):
            stop(f"--{option}_column {name!r} holds {rows.features[name]}, expected texts")
    for option, name in (("prompt", args.prompt_column), ("answer", args.answer_column)):
        if any(not text for text in rows[name]):
            stop(f"--{option}_column {name!r} has rows without a text; leave them out")
    if "vog" in rows.column_names:
        stop("the data set has a column 'vog' already, from an earlier run; pass the data set without its scores")
    return rows


# Questions on numbers below 1,000: each with its answer, and an answer that is wrong.
QUESTIONS = {
    "which number comes after {n} ?": (lambda n: n + 1, lambda n: n - 1),
    "which number comes before {n} ?": (lambda n: n - 1, lambda n: n + 1),
    "what is the last digit of {n} ?": (lambda n: n % 10, lambda n: (n + 3) % 10),
    "is {n} even or odd ?": (lambda n: ("even", "odd")[n % 2], lambda n: ("odd", "even")[n % 2]),
}


def synthetic_rows(n_rows, wrong_share, *, seed):
    """Questions and answers; a share of the answers is wrong, and the column is_corrupted says which."""
    random = np.random.default_rng(seed)
    kinds = list(QUESTIONS)
    found = {"prompt": [], "answer": [], "is_corrupted": []}
    wrong = set(random.permutation(n_rows)[: round(wrong_share * n_rows)].tolist())
    for row in range(n_rows):
        kind, n = kinds[int(random.integers(len(kinds)))], int(random.integers(1, 1000))
        right_answer, wrong_answer = (answer(n) for answer in QUESTIONS[kind])
        found["prompt"].append(kind.format(n=n))
        found["answer"].append(str(wrong_answer if row in wrong else right_answer))
        found["is_corrupted"].append(row in wrong)
    return Dataset.from_dict(found)


def load_model(model_args, args):
    """The model that the adapter is put on, and its tokenizer."""
    if model_args.model == "scratch:small-llama":
        return pretrained_on_numbers(model_args.pretraining_epochs, args)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_args.model, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(model_args.model, trust_remote_code=False)
    except (OSError, ValueError) as error:  # not there, or no language model
        stop(f"--model {model_args.model} cannot be loaded: {error}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def pretrained_on_numbers(epochs, args):
    """A small Llama that tells facts about numbers, trained on the main process, and its tokenizer (digit by digit)."""
    folder = Path(args.output_dir) / "base"
    with args.main_process_first(local=False, desc="the base model"):
        if args.process_index == 0:
            train_base(epochs, folder, args.device)
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False), AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False
        )


def train_base(epochs, folder, device):
    texts = [
        f"{n} comes before {n + 1} . it comes after {n - 1} . "
        f"it is {('even', 'odd')[n % 2]} . its last digit is {n % 10} ."
        for n in range(1, 1000)
    ]
    words = sorted({word for text in [*texts, *QUESTIONS] for word in text.split() if word.isalpha() or word in ".?"})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *"0123456789", *words])}
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    )
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 (no password)
    made.pre_tokenizer = splitter
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**SMALL_LLAMA, vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=None, eos_token_id=2)
    ).to(device)
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, IGNORED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(1, epochs + 1):
        for part in torch.randperm(len(texts)).split(32):
            loss = model(tokens["input_ids"][part], tokens["attention_mask"][part], labels=labels[part]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"base model, epoch {epoch}: loss {loss.item():.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lora_config(args):
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=args.lora_rank, lora_alpha=args.lora_alpha, target_modules="all-linear"
    )


def make_trainer(kind, *, args, **options):
    """TRL's SFTTrainer or a plain Trainer; the rows have their tokens and labels already."""
    if kind not in ("auto", "trl", "transformers"):
        stop(f"--trainer {kind!r} does not exist; there are auto, trl and transformers")
    installed = importlib.util.find_spec("trl") is not None
    if kind == "transformers" or (kind == "auto" and not installed):
        return Trainer(args=args, **options)
    if not installed:
        stop("--trainer trl needs TRL: pip install trl")
    from trl import SFTConfig, SFTTrainer

    given = {field.name: getattr(args, field.name) for field in fields(args) if field.init}
    return SFTTrainer(args=SFTConfig(**given, max_length=None), **options)


def tokenize(row, *, tokenizer, prompt_column, answer_column, max_length):
    """Tokens of prompt and answer, and labels, which the prompt's tokens have none of."""
    prompt = tokenizer(row[prompt_column])["input_ids"]
    answer = tokenizer(f" {row[answer_column]}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def vog_folder(args):
    return Path(args.output_dir) / "_vog"


def checkpoint_to_resume(args):
    """The one that --resume_from_checkpoint names; of "True" the last one in the output folder, if there is one."""
    if args.resume_from_checkpoint not in ("True", "true"):
        return args.resume_from_checkpoint
    return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None


def parse_snapshots(text):
    if "," in text:
        return [int(step) for step in text.split(",")]
    return int(text) if text.isdigit() else text


def headline(results, columns, rows):
    """The few figures of a run that are compared between runs."""
    found = {
        "probability of the answers' tokens (mean over the snapshots)": results["mean_answer_confidence"],
        "share of a row's VoG on its answer": results["share_of_vog_on_answer"],
        "size of a snapshot, of the model's": results["snapshot_bytes"] / (4 * results["parameters"]),
    }
    if results["detection"] is not None:
        wrong = rows["is_corrupted"][:]
        for name in ("vog", "vog_answer", "gradient_magnitude", "loss"):
            found[f"AUROC of high {name} for wrong answers"] = float(auroc(columns[name], wrong))
    return found


def print_results(results, spearman, detection):
    print(
        f"\n{results['model']}, {results['parameters']:,} parameters, of which {results['trained_parameters']:,} ",
        end="",
    )
    print(f"are the adapter's; {results['rows']:,} rows, {results['epochs']:g} epochs with {results['trainer']}")
    print(
        f"snapshots after steps {', '.join(map(str, results['snapshots']))}, {results['snapshot_bytes']:,} bytes each"
    )
    print(f"training {results['training_seconds']} s, scoring {results['scoring_seconds']} s")
    print(f"mean probability of the answers' tokens over the snapshots: {results['mean_answer_confidence']:.3f}")
    print(f"share of a row's VoG that lies on its answer, on average: {results['share_of_vog_on_answer']:.3f}")
    print("\nSpearman rank correlation of the columns:\n")
    print(spearman.to_string(float_format="{:.2f}".format))
    if detection is not None:
        print("\nRows known to have a wrong answer, found by each column in its better direction:\n")
        print(detection.to_string(index=False, float_format="{:.3f}".format))


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)

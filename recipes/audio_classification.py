"""Train an audio classifier, rank its training rows by Variance of Gradients, and see what the ranking is worth.

The gradient is taken with respect to what the model is fed: the waveform, or the log-mel spectrogram. Every clip is cut
or filled up with silence to the same length, so that no score depends on the clips beside it. Where the model takes an
attention mask, that silence does not count.

Needs: pip install vog-hf  (WAV files are read by scipy; for FLAC, MP3 and Ogg also: pip install soundfile)

A pretrained model and a data set of the Hub:

    python recipes/audio_classification.py --dataset PolyAI/minds14 --dataset_config en-US --label_column intent_class \
        --train_split 'train[:80%]' --eval_split 'train[80%:]' --model facebook/wav2vec2-base --seconds 10 \
        --learning_rate 5e-5

From scratch, without a network, on parquet files: a model of waveforms, or one of log-mel spectrograms:

    python recipes/audio_classification.py --dataset fsdd-train.parquet --eval_dataset fsdd-test.parquet \
        --model scratch:waveform
    python recipes/audio_classification.py --dataset fsdd-train.parquet --eval_dataset fsdd-test.parquet \
        --model scratch:log-mel

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`.

In --output_dir, beside the model: results.json, clips.png (clips at both ends of the ranking, and where in them the
gradient changed), report.html, scored.parquet and scored/ (for load_from_disk).

Time and the figures to expect, each with its command: recipes/README.md.
"""

import io
import json
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Audio, ClassLabel, Dataset, Features, Value
from matplotlib.figure import Figure
from scipy.io import wavfile
from scipy.signal import resample_poly
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback, VoGConfig, VoGError, add_vog_columns
from vog_hf.data import as_classes, load_rows, part_of
from vog_hf.evaluation import error_by_decile, hard_tail, rank_correlations
from vog_hf.report import write_report
from vog_hf.scores import most_extreme

# Models to train from scratch, for short clips at 8 kHz. Layer norm in the wav2vec2: with its default, group norm, the
# silence after a clip changes the features of the clip itself, and transformers uses no mask.
RATE, MELS, FRAMES_PER_SECOND = 8000, 64, 100
SCRATCH = ("waveform", "log-mel")
COMPARED = ("vog", "vog_class_normalized", "vog_early", "vog_late", "gradient_magnitude", "loss", "confidence")


@dataclass
class DataArguments:
    dataset: str = field(
        metadata={
            "help": "Hub id, parquet file, folder with WAV files of each class in its own, or one from save_to_disk."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Where the rows to evaluate on are, if elsewhere; a parquet file is 'train'."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Rows to evaluate on at the end."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    audio_column: str | None = field(default=None, metadata={"help": "Default: the first column of audio."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the first ClassLabel column."})
    seconds: float = field(default=0.8, metadata={"help": "Every clip is cut, or filled up with silence, to this."})


@dataclass
class ModelArguments:
    model: str = field(
        default="scratch:log-mel",
        metadata={"help": f"Hub id, local folder, or scratch:{{{','.join(SCRATCH)}}}."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give the model a new head where its own has another number of classes."}
    )


@dataclass
class VoGArguments:
    vog_target: list[str] = field(
        default_factory=lambda: ["logit"],
        metadata={"help": "What is differentiated: logit, probability, loss; the first fills the column vog."},
    )
    vog_label: str = field(default="given", metadata={"help": "Class whose logit it is: given or predicted."})
    snapshots: str = field(default="auto", metadata={"help": "auto, epoch, every n steps, or steps: 100,200,400."})
    max_snapshots: int = field(default=10, metadata={"help": "More are thinned evenly."})


def make_parser():
    parser = HfArgumentParser((DataArguments, ModelArguments, VoGArguments, TrainingArguments))
    parser.set_defaults(  # for training from scratch; a pretrained model wants a smaller learning rate
        num_train_epochs=12,
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup_steps=50,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        save_strategy="no",
        logging_steps=50,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,  # the transform below reads the audio column
    )
    return parser


def main():
    data_args, model_args, vog_args, args = make_parser().parse_args_into_dataclasses()
    config = VoGConfig(target=tuple(vog_args.vog_target), label=vog_args.vog_label)
    on_main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)
    set_seed(args.seed)

    rows, audio_column, label_column = rows_to_train_on(data_args)
    eval_rows = rows_to_evaluate_on(data_args, audio_column, label_column, rows.features[label_column].names)
    model, extractor = load_model(model_args, rows.features[label_column].names, data_args.seconds)
    to_features = partial(
        to_inputs,
        extractor=extractor,
        input_name=model.main_input_name,
        seconds=data_args.seconds,
        audio_column=audio_column,
        label_column=label_column,
    )

    vog = VoGCallback(
        rows.with_transform(to_features),
        config=config,
        snapshots=parse_snapshots(vog_args.snapshots),
        max_snapshots=vog_args.max_snapshots,
        log=bool(args.report_to),
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows.with_transform(to_features),
        eval_dataset=None if eval_rows is None else eval_rows.with_transform(to_features),
        processing_class=extractor,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=[vog],
    )
    started = time.perf_counter()
    training_seconds = trainer.train(checkpoint_to_resume(args)).metrics["train_runtime"]
    scoring_seconds = time.perf_counter() - started - training_seconds
    trainer.save_model()
    eval_accuracy = trainer.evaluate()["eval_accuracy"] if eval_rows is not None else None
    scores = vog.scores
    if not on_main_process:
        return

    # What the ranking is worth in this run.
    columns = scores.to_pandas()
    mistakes = 1 - columns["correctness"]  # share of the snapshots whose prediction is not the given label
    ranked = [name + ending for name in config.column_names for ending in ("", "_class_normalized")]
    errors = {name: list(error_by_decile(columns[name], mistakes)["error"]) for name in [*ranked, "loss"]}
    deciles = pd.DataFrame(errors)
    deciles.index += 1
    columns["seconds"] = [len(sound) / rate for rate, sound in map(decode, rows[audio_column])]
    others = [name for name in config.column_names if name != "vog"]
    spearman = rank_correlations(columns[[*COMPARED, *others, "seconds"]])
    tail = hard_tail(scores)
    results = {
        "model": model_args.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": len(rows),
        "epochs": trainer.state.epoch,
        "snapshots": [snapshot["step"] for snapshot in scores.manifest["snapshots"]],
        "training_seconds": round(training_seconds, 1),
        "scoring_seconds": round(scoring_seconds, 1),
        "train_accuracy": float((columns["prediction"] == columns["label"]).mean()),
        "eval_accuracy": eval_accuracy,
        "error_by_decile": deciles.to_dict("list"),
        "spearman": spearman.astype(object).where(spearman.notna(), None).to_dict(),
        "hard_tail": tail.to_dict(),
    }
    results["headline"] = headline(results, deciles, spearman)

    output = Path(args.output_dir)
    scored = add_vog_columns(rows, scores, "all")
    scored.save_to_disk(str(output / "scored"))
    scored.to_parquet(str(output / "scored.parquet"))
    shown = {
        "seconds": data_args.seconds,
        "is_masked": extractor.return_attention_mask,
        "axis_of_frequencies": frequency_axis(to_features(rows[:1])[model.main_input_name][0], extractor),
    }
    draw_clips(scores, rows, audio_column, label_column, **shown).savefig(output / "clips.png", dpi=110)
    write_report(scores, rows, output / "report.html")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_results(results, deciles, spearman)
    print(f"\n{tail.column}, {tail}")
    print(f"\nEverything is in {output}: results.json, clips.png, report.html, scored.parquet, scored/, the model")


def rows_to_train_on(args):
    """The rows to train on, the name of their audio column and that of their label column."""
    rows = load_split(args.dataset, args.dataset_config, args.train_split)
    audio_column = args.audio_column or next((n for n, f in rows.features.items() if holds_audio(f)), None)
    label_column = args.label_column or next((n for n, f in rows.features.items() if isinstance(f, ClassLabel)), None)
    for option, kind, name in (("audio", "audio", audio_column), ("label", "classes", label_column)):
        if name is None:
            stop(f"no column holds {kind}; name one of {rows.column_names} with --{option}_column")
        if name not in rows.column_names:
            stop(f"--{option}_column {name!r} is not a column of the data set; it has {rows.column_names}")
    if not holds_audio(rows.features[audio_column]):
        stop(f"--audio_column {audio_column!r} holds {rows.features[audio_column]}, expected audio")
    rows = rows.cast_column(audio_column, Audio(decode=False))  # the bytes of the file; `decode` reads them
    rows = as_classes(rows, label_column)
    if args.max_train_samples is not None:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    if "vog" in rows.column_names:
        stop("the data set has a column 'vog' already, from an earlier run; pass the data set without its scores")
    return rows, audio_column, label_column


def holds_audio(feature):
    """Whether a column is of audio files: of the feature Audio, or of their bytes and paths."""
    return isinstance(feature, Audio) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def rows_to_evaluate_on(args, audio_column, label_column, classes):
    """The rows to evaluate on, or None, with the classes of the training rows."""
    if args.eval_split is None and args.eval_dataset is None:
        return None
    is_file = args.eval_dataset is not None and Path(args.eval_dataset).is_file()
    split = args.eval_split or ("train" if is_file else "test")
    config = args.dataset_config if args.eval_dataset is None else None
    rows = load_split(args.eval_dataset or args.dataset, config, split)
    for name in (audio_column, label_column):
        if name not in rows.column_names:
            stop(f"the rows to evaluate on have no column {name!r}; they have {rows.column_names}")
    return as_classes(rows, label_column, classes).cast_column(audio_column, Audio(decode=False))


def load_split(source, config, split):
    """Rows of a folder of sounds, which is the split train, or of any other data set."""
    if not any(Path(source).glob("*/*.wav")):
        return load_rows(source, split, config=config)
    try:
        return part_of(folder_of_sounds(Path(source)), split)
    except ValueError as error:  # no such split
        stop(f"{source}, a folder of sounds, with split {split!r} cannot be loaded: {error}")


def folder_of_sounds(folder):
    """The WAV files of a folder with one subfolder per class; datasets itself needs torchcodec for them."""
    files = sorted(folder.glob("*/*.wav"))
    classes = ClassLabel(names=sorted({path.parent.name for path in files}))
    columns = {
        "audio": [{"bytes": None, "path": str(path)} for path in files],
        "label": [path.parent.name for path in files],
    }
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, "label": classes})
    return Dataset.from_dict(columns, features=features)


def load_model(args, classes, seconds):
    """The model with an output per class, and its feature extractor."""
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    source, _, name = args.model.partition(":")
    if source == "scratch":
        if name not in SCRATCH:
            stop(f"--model {args.model!r} does not exist; from scratch there are {', '.join(SCRATCH)}")
        config, extractor = from_scratch(name, seconds)
        config.update(labels)
        return AutoModelForAudioClassification.from_config(config), extractor
    try:
        extractor = AutoFeatureExtractor.from_pretrained(args.model, trust_remote_code=False)
        model = AutoModelForAudioClassification.from_pretrained(
            args.model, trust_remote_code=False, ignore_mismatched_sizes=args.ignore_mismatched_sizes, **labels
        )
    except RuntimeError:
        stop(f"--model {args.model} has not {len(classes)} outputs; --ignore_mismatched_sizes gives it a new head")
    except (OSError, ValueError) as error:  # not there, or no audio classifier
        stop(f"--model {args.model} cannot be loaded: {error}")
    return model, extractor


def from_scratch(name, seconds):
    """Configuration and feature extractor of a small model for clips of this length."""
    size = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    if name == "waveform":
        config = Wav2Vec2Config(
            **size,
            conv_dim=(24, 32, 48, 64),
            conv_kernel=(10, 8, 4, 4),
            conv_stride=(5, 4, 4, 2),
            feat_extract_norm="layer",
            num_conv_pos_embeddings=15,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=96,
            layerdrop=0.0,
            apply_spec_augment=False,
        )
        return config, Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    frames = round(seconds * FRAMES_PER_SECOND)
    config = ASTConfig(**size, patch_size=8, frequency_stride=8, time_stride=8, max_length=frames, num_mel_bins=MELS)
    return config, ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=MELS, max_length=frames)


def decode(audio):
    """Sampling rate and samples (mono, -1..1) of a file's bytes, or of the file at its path."""
    content = audio["bytes"] if audio["bytes"] is not None else Path(audio["path"]).read_bytes()
    if content[:4] == b"RIFF":
        rate, samples = wavfile.read(io.BytesIO(content))
        if samples.dtype == np.uint8:
            samples = samples.astype(np.float32) / 128 - 1
        elif np.issubdtype(samples.dtype, np.integer):
            samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    else:
        try:
            import soundfile
        except ImportError:
            stop(f"{audio['path']} is not a WAV file; other formats need soundfile: pip install soundfile")
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    return rate, samples.mean(axis=1) if samples.ndim == 2 else samples


def to_inputs(rows, *, extractor, input_name, seconds, audio_column, label_column):
    """From a batch of rows to what the model is fed, and, if it knows one, a mask of what is not silence added here."""
    rate = extractor.sampling_rate
    length = round(seconds * rate)
    sounds = [resampled(*decode(audio), rate)[:length] for audio in rows[audio_column]]
    options = {"sampling_rate": rate, "return_tensors": "pt"}
    if extractor.return_attention_mask:
        features = extractor(sounds, padding="max_length", max_length=length, return_attention_mask=True, **options)
    else:
        features = extractor([np.pad(sound, (0, length - len(sound))) for sound in sounds], **options)
    names = [name for name in (input_name, "attention_mask") if name in features]
    return {**{name: list(features[name]) for name in names}, "labels": rows[label_column]}


def resampled(rate, samples, wanted_rate):
    if rate != wanted_rate:
        common = math.gcd(rate, wanted_rate)
        samples = resample_poly(samples, wanted_rate // common, rate // common)
    return samples.astype(np.float32)


def frequency_axis(features, extractor):
    """Of a spectrogram [frames, bins], or of Whisper's [bins, frames]."""
    return 0 if np.shape(features)[0] == extractor.feature_size else 1


def draw_clips(scores, rows, audio_column, label_column, *, seconds, is_masked, axis_of_frequencies, n=6):
    """Waveforms of the highest and the lowest rows; darker where the gradient changed more."""
    names = rows.features[label_column].names
    figure = Figure(figsize=(10, 1.3 * n), layout="constrained")
    axes = figure.subplots(n, 2, sharex=True)
    for column, part in zip(axes.T, most_extreme(scores, "vog_class_normalized", n), strict=True):
        for axis, row in zip(column, part, strict=True):
            rate, samples = decode(rows[int(row)][audio_column])
            samples = samples[: round(seconds * rate)]
            heat = scores.heat_map(int(row))
            heat = heat if heat.ndim == 1 else heat.mean(axis=axis_of_frequencies)  # a spectrogram
            heated = len(samples) / rate if is_masked else seconds  # added silence that is masked has no heat
            axis.imshow(heat[None], extent=(0, heated, -1, 1), aspect="auto", cmap="Reds", vmin=0)
            axis.set_xlim(0, seconds)
            axis.plot(np.arange(len(samples)) / rate, samples / max(np.abs(samples).max(), 1e-9), "k", linewidth=0.5)
            score = scores.column("vog_class_normalized")[row]
            said = f"row {row}, {names[rows[int(row)][label_column]]}, "
            said += f"predicted {names[scores.column('prediction')[row]]}, {score:+.1f}"
            axis.set_title(said, parse_math=False, fontsize=8)
            axis.set_yticks([])
    axes[0, 0].annotate("highest", (0, 1.35), xycoords="axes fraction", fontsize=10)
    axes[0, 1].annotate("lowest", (0, 1.35), xycoords="axes fraction", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    return figure


def checkpoint_to_resume(args):
    """The one that --resume_from_checkpoint names; of "True" the last one in the output folder, if there is one."""
    if args.resume_from_checkpoint not in ("True", "true"):
        return args.resume_from_checkpoint
    return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None


def parse_snapshots(text):
    if "," in text:
        return [int(step) for step in text.split(",")]
    return int(text) if text.isdigit() else text


def headline(results, deciles, spearman):
    """The few figures of a run that are compared between runs."""
    found = {"accuracy on the training rows": results["train_accuracy"]}
    if results["eval_accuracy"] is not None:
        found["accuracy on the evaluation rows"] = results["eval_accuracy"]
    for column in ("vog_class_normalized", "loss"):
        found[f"training error, lowest tenth by {column}"] = deciles[column].iloc[0]
        found[f"training error, highest tenth by {column}"] = deciles[column].iloc[-1]
    correlation = spearman.loc["vog", ["gradient_magnitude", "loss"]].dropna()
    return found | {f"rank correlation of vog with {name}": float(value) for name, value in correlation.items()}


def print_results(results, deciles, spearman):
    print(f"\n{results['model']}, {results['parameters']:,} parameters, {results['rows']:,} rows, ", end="")
    print(f"{results['epochs']:g} epochs, snapshots after steps {', '.join(map(str, results['snapshots']))}")
    print(f"training {results['training_seconds']} s, scoring {results['scoring_seconds']} s")
    print(f"accuracy on the scored rows at the last snapshot: {results['train_accuracy']:.3f}")
    if results["eval_accuracy"] is not None:
        print(f"accuracy on the evaluation rows: {results['eval_accuracy']:.3f}")
    print("\nTraining error (mean over the snapshots) by decile of each column, 1 = lowest scores:\n")
    print(deciles.T.to_string(float_format="{:.3f}".format))
    print("\nSpearman rank correlation of the columns:\n")
    print(spearman.to_string(float_format="{:.2f}".format))


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)

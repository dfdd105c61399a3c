"""Train an image classifier, rank its training rows by Variance of Gradients, and see what the ranking is worth.

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms, timm for --model timm/...)

A small ResNet from scratch, and a pretrained model on a folder of images with one subfolder per class:

    python recipes/image_classification.py --dataset uoft-cs/cifar10 --eval_split test --max_train_samples 10000
    python recipes/image_classification.py --dataset my_images --model timm/resnet18.a1_in1k --learning_rate 1e-4

In --output_dir: the model, report.html, contact-sheet.png, scored.parquet and _vog/ (snapshots and scores).

Time on one core of a CPU for the first command (12 epochs): 2.3 minutes of training and, with the two targets logit and
loss, 2.4 of scoring. Expected: accuracy 0.68 on the test rows. The ranking: recipes/experiments/FINDINGS.md.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback, VoGConfig, write_report
from vog_hf.data import as_classes, find_column, load_rows
from vog_hf.evaluation import hard_tail
from vog_hf.scores.pictures import contact_sheet

SMALL_RESNET = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic")
SIDE = 64  # of images, for the model from scratch
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, for the model from scratch


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Dataset to evaluate on. Default: --dataset."})
    eval_split: str | None = field(default=None, metadata={"help": "Rows to evaluate on. Of --eval_dataset: train."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the only column of images."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only ClassLabel column."})
    model: str | None = field(default=None, metadata={"help": "Hub id or local folder. Default: a small ResNet."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the images. Default: the model's own."})
    vog_target: list[str] = field(default_factory=lambda: ["logit"], metadata={"help": "logit, probability, loss."})
    snapshots: str = field(default="auto", metadata={"help": "auto, epoch, or steps: 100,200,400."})
    max_snapshots: int = field(default=8, metadata={"help": "More are thinned evenly."})


def load_model(name, classes):
    """Load the model with an output per class, and its image processor."""
    ids = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    labels = {"num_labels": len(classes), **ids}  # timm's models want the number, too
    if name is None:
        SMALL_RESNET.update(ids)
        model = AutoModelForImageClassification.from_config(SMALL_RESNET)
        return model, ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD)
    model = AutoModelForImageClassification.from_pretrained(name, ignore_mismatched_sizes=True, **labels)
    return model, AutoImageProcessor.from_pretrained(name)


def make_transform(processor, side, image_column, label_column, *, augment):
    """Make the transform from a batch of rows to model inputs, with random crops and flips or without."""
    timm = getattr(processor, "data_config", None)
    size = {} if timm else dict(getattr(processor, "crop_size", None) or processor.size)
    side = side or (timm["input_size"][-1] if timm else size.get("height") or size["shortest_edge"])
    mean, std = (timm["mean"], timm["std"]) if timm else (processor.image_mean, processor.image_std)
    to_pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    varied = [v2.RandomCrop(side, padding=side // 8), v2.RandomHorizontalFlip()]
    prepare = v2.Compose([v2.Resize(side), *(varied if augment else [v2.CenterCrop(side)]), *to_pixels])

    def transform(rows):
        pixels = [prepare(image.convert("RGB")) for image in rows[image_column]]
        return {"pixel_values": pixels, "labels": rows[label_column]}

    return transform


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(num_train_epochs=12, learning_rate=2e-3, weight_decay=0.05, per_device_train_batch_size=64)
    parser.set_defaults(per_device_eval_batch_size=256, save_strategy="no")
    parser.set_defaults(remove_unused_columns=False)  # the transform reads the image column
    options, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)

    rows = load_rows(options.dataset, options.train_split)
    image_column = find_column(rows, "image", options.image_column)
    label_column = find_column(rows, "class", options.label_column)
    rows = as_classes(rows, label_column)
    rows = rows.select(range(min(options.max_train_samples or len(rows), len(rows))))
    classes = rows.features[label_column].names
    model, processor = load_model(options.model, classes)
    columns = (processor, options.image_size, image_column, label_column)
    for_training, for_scoring = (make_transform(*columns, augment=augment) for augment in (True, False))
    eval_rows = None
    if options.eval_dataset or options.eval_split:
        eval_rows = load_rows(options.eval_dataset or options.dataset, options.eval_split)
        eval_rows = as_classes(eval_rows, label_column, classes).with_transform(for_scoring)

    # The same rows twice: cropped and flipped at random for training, and as they are for scoring.
    steps = options.snapshots
    vog = VoGCallback(
        rows.with_transform(for_scoring),
        config=VoGConfig(target=tuple(options.vog_target)),
        snapshots=[int(step) for step in steps.split(",")] if steps[0].isdigit() else steps,
        max_snapshots=options.max_snapshots,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows.with_transform(for_training),
        eval_dataset=eval_rows,
        processing_class=processor,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=[vog],
    )
    checkpoint = args.resume_from_checkpoint
    if checkpoint == "True":  # the last one, if there is one
        checkpoint = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if eval_rows is not None:
        trainer.save_metrics("eval", trainer.evaluate())

    if trainer.is_world_process_zero():
        output, scores = Path(args.output_dir), vog.scores
        vog.scored_dataset("all").to_parquet(output / "scored.parquet")
        contact_sheet(scores, rows).save(output / "contact-sheet.png")
        write_report(scores, rows, output / "report.html")
        print(hard_tail(scores))
        print(f"Everything is in {output}: the model, report.html, contact-sheet.png, scored.parquet, _vog/")


if __name__ == "__main__":
    main()

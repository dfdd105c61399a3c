"""Train with the paper's networks and schedules for CIFAR and ImageNet, and score with the published snapshots.

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms), and GPUs.

CIFAR-10 with a ResNet-18 for 350 epochs, and ImageNet with a ResNet-50 on 8 GPUs, 1,024 images a step, where vog_early
and vog_late are those of the first and the last three of the nine published snapshots:

    python recipes/experiments/paper_training.py --dataset uoft-cs/cifar10 --model scratch:resnet18-cifar \
        --num_train_epochs 350 --per_device_train_batch_size 128 --learning_rate 0.1 --weight_decay 5e-4 \
        --lr_drops 0.43 0.71
    accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml recipes/experiments/paper_training.py \
        --dataset ILSVRC/imagenet-1k --eval_split validation --model scratch:resnet50 --image_size 224 \
        --max_steps 32000 --per_device_train_batch_size 128 --learning_rate 0.4 --weight_decay 1e-4 \
        --warmup_steps 1251 --lr_drops 0.33 0.67 0.89 --dataloader_num_workers 8 \
        --snapshots 3753 5004 6255 10008 11259 12510 30024 31275 32000

In --output_dir: the model, eval_results.json, report.html and _vog/ (snapshots and scores).

Read, and tried with fewer steps; not run to the end, for want of GPUs. So there is no time and no expected figure.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from image_training import MEAN, STD, load_images, log_on_main_process, make_parser, stop
from torch import nn
from torchvision.transforms import v2
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, set_seed

from vog_hf import VoGCallback, VoGError, write_report

RESNET18 = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
MOMENTUM = 0.9
CROP = 0.875  # share of the shorter side of ImageNet's images that is scored


@dataclass
class PaperArguments:
    lr_drops: list[float] = field(
        default_factory=list, metadata={"help": "Divide the learning rate by ten after these shares of the training."}
    )
    snapshots: list[int] | None = field(default=None, metadata={"help": "Steps. Default: ends of ten epochs."})


class CifarResNetForImageClassification(ResNetForImageClassification):
    """ResNet for 32 x 32 images: its first layer has 3 x 3 weights and keeps their size. Load it with this class."""

    def __init__(self, config):
        super().__init__(config)
        stem = self.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
        stem.pooler = nn.Identity()
        self.post_init()


class DroppingTrainer(Trainer):
    """Trainer with SGD with momentum, and a learning rate that drops after given shares of the training."""

    def __init__(self, *args, lr_drops, **kwargs):
        super().__init__(*args, **kwargs)
        self.lr_drops = lr_drops

    def create_scheduler(self, num_training_steps, optimizer=None):
        """Return the learning rate's schedule, after the warm-up if there is one."""
        if self.lr_scheduler is None:
            warmup = max(self.args.get_warmup_steps(num_training_steps), 1)
            ends = [share * num_training_steps for share in self.lr_drops]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: min(1.0, (step + 1) / warmup) * 0.1 ** sum(step >= end for end in ends),
            )
        return self.lr_scheduler


def make_transforms(is_cifar, side, image_column, label_column):
    """Make two transforms from a batch of rows to model inputs: with random crops and flips, and without."""
    crop = v2.RandomCrop(side, padding=side // 8) if is_cifar else v2.RandomResizedCrop(side)
    whole = [v2.Resize(side)] if is_cifar else [v2.Resize(round(side / CROP)), v2.CenterCrop(side)]
    to_pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]

    def transform(steps):
        prepare = v2.Compose([*steps, *to_pixels])
        return lambda rows: {
            "pixel_values": [prepare(image.convert("RGB")) for image in rows[image_column]],
            "labels": rows[label_column],
        }

    return transform([crop, v2.RandomHorizontalFlip()]), transform(whole)


def main():
    """Train, score and write the report."""
    parser = make_parser(PaperArguments, output_dir="paper-training")
    data_args, paper_args, model_args, args = parser.parse_args_into_dataclasses()
    log_on_main_process(args)
    set_seed(args.seed)
    rows, eval_rows, image_column, label_column = load_images(data_args)
    names = dict(enumerate(rows.features[label_column].names))
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    is_cifar = model_args.model == "scratch:resnet18-cifar"
    if is_cifar:
        model = CifarResNetForImageClassification(ResNetConfig(**RESNET18, **labels))
    elif model_args.model == "scratch:resnet50":
        model = ResNetForImageClassification(ResNetConfig(**labels))
    else:
        stop(f"--model must be scratch:resnet18-cifar or scratch:resnet50, got {model_args.model}")
    for_training, for_scoring = make_transforms(is_cifar, data_args.image_size, image_column, label_column)
    vog = VoGCallback(rows.with_transform(for_scoring), snapshots=paper_args.snapshots or "auto", max_snapshots=10)
    trainer = DroppingTrainer(
        model=model,
        args=args,
        lr_drops=paper_args.lr_drops,
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": args.learning_rate, "momentum": MOMENTUM}),
        train_dataset=rows.with_transform(for_training),
        eval_dataset=eval_rows.with_transform(for_scoring),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        callbacks=[vog],
    )
    trainer.train(args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        write_report(vog.scores, rows, Path(args.output_dir) / "report.html")
        print(f"Everything is in {args.output_dir}: the model, eval_results.json, report.html, _vog/")


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)

"""(not a program) A small network that learns CIFAR-10 from scratch in minutes on one core, and its training.

After airbench94 (Keller Jordan, arXiv 2404.00498): a frozen whitening layer, six convolutions with BatchNorm and GELU,
Nesterov SGD with a triangular schedule, label smoothing, shifts, and flips that alternate from epoch to epoch. Its
averaging of weights (lookahead) is left out, so that the rate must fall to 0 at the end.
"""

import time

import numpy as np
import torch
from torch import nn

PEAK_RATE, MOMENTUM, WEIGHT_DECAY, BIAS_SCALE = 11.5, 0.85, 0.0153, 64.0  # airbench94; rate and decay per 1,024 rows
SHIFT, WARM_UP, FIRST_RATE = 2, 0.23, 0.2
WHITENING_ROWS, EVAL_BATCH = 5000, 500


class Pair(nn.Module):
    """Two convolutions, the first one followed by pooling, with BatchNorm (without a scale) and GELU after each."""

    def __init__(self, channels, width):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(width, momentum=0.4)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, momentum=0.4)
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(requires_grad=False)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x):
        x = nn.functional.gelu(self.norm1(self.pool(self.conv1(x))))
        return nn.functional.gelu(self.norm2(self.conv2(x)))


class FastNetwork(nn.Module):
    """Logits of images of 32 x 32 pixels, normalized to mean 0 and deviation 1 per channel."""

    def __init__(self, widths, n_classes, images):
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.whitening.weight.data = whitening_filters(images)
        self.whitening.weight.requires_grad_(requires_grad=False)
        nn.init.zeros_(self.whitening.bias)
        channels = [24, *widths]
        self.pairs = nn.Sequential(*(Pair(*io) for io in zip(channels, widths, strict=False)))
        self.head = nn.Linear(widths[-1], n_classes, bias=False)

    def forward(self, pixel_values):
        x = self.pairs(nn.functional.gelu(self.whitening(pixel_values)))
        return self.head(nn.functional.max_pool2d(x, 3).flatten(1)) / 9


def whitening_filters(images):
    """Filters that decorrelate patches of 2 x 2 pixels, and their negatives, ``[24, 3, 2, 2]``."""
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + 5e-4)).T.reshape(12, 3, 2, 2)
    return torch.cat([filters, -filters])


def decode_images(rows, column):
    """Decode all images of a column, ``[rows, 3, height, width]``, bytes."""
    pixels = [np.asarray(image.convert("RGB")) for image in rows[column]]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


class Normalizer:
    """Normalizes bytes by mean and deviation of the training rows, per channel."""

    def __init__(self, images):
        pixels = images[:WHITENING_ROWS].float() / 255
        self.mean = pixels.mean(dim=(0, 2, 3), keepdim=True)
        self.std = pixels.std(dim=(0, 2, 3), keepdim=True)

    def __call__(self, images):
        return ((images.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def augmented(padded, rows, epoch, generator):
    """Images of these rows, each shifted at random by up to `SHIFT` pixels and flipped in every other epoch."""
    side = padded.shape[-1] - 2 * SHIFT
    top, left = torch.randint(0, 2 * SHIFT + 1, (2, len(rows), 1), generator=generator)
    down, right = top + torch.arange(side), left + torch.arange(side)
    flipped = (rows * 2654435761 // 65536 + epoch) % 2 == 1  # the first flip from a hash of the row
    right = torch.where(flipped[:, None], right.flip(1), right)
    return padded[rows[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def train(
    model, images, labels, *, normalize, epochs, batch_size, label_smoothing, last_rate, seed, bfloat16, after_step
):
    """Train on bytes ``[rows, 3, side, side]``; call ``after_step(step)`` after each step; return CPU seconds.

    ``bfloat16`` runs the forward pass under autocast; weights, optimizer and loss stay in float32.
    """
    generator = torch.Generator().manual_seed(seed)
    padded = nn.functional.pad(images.float(), [SHIFT] * 4, mode="reflect").byte()
    steps_per_epoch = len(images) // batch_size
    total, step, started = epochs * steps_per_epoch, 0, time.process_time()
    optimizer = make_optimizer(model, batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: triangle(done / total, last_rate))
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(images), generator=generator)[: steps_per_epoch * batch_size].split(batch_size):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
                logits = model(normalize(augmented(padded, rows, epoch, generator)))
            smoothed = {"label_smoothing": label_smoothing, "reduction": "sum"}
            loss = nn.functional.cross_entropy(logits.float(), labels[rows], **smoothed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            after_step(step)
        print(
            f"epoch {epoch + 1}: loss {loss.item() / batch_size:.3f}, {time.process_time() - started:.0f} s", flush=True
        )
    return time.process_time() - started


def make_optimizer(model, batch_size):
    """Make Nesterov SGD for summed losses, with a higher rate for the biases of BatchNorm, as airbench94 has it."""
    scale = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = PEAK_RATE / scale, WEIGHT_DECAY * batch_size / scale
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if ("norm" in name) == is_norm], "lr": lr, "weight_decay": decay / lr}
        for is_norm, lr in ((True, rate * BIAS_SCALE), (False, rate))
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


def triangle(done, last_rate):
    """Factor of the learning rate after this share 0..1 of the training; ``last_rate`` at its end."""
    return float(np.interp(done, [0, WARM_UP, 1], [FIRST_RATE, 1, last_rate]))


@torch.no_grad()
def predict(model, images, normalize):
    """Predicted classes ``[rows]`` in evaluation mode."""
    model.eval()
    return torch.cat([model(normalize(part)).argmax(-1) for part in images.split(EVAL_BATCH)])

"""Small modules of unusual kinds: what they hold, change or share is not what a stack of linear layers does.

`MODELS` maps a name to an `Unusual`: a function that builds the model from its own seed, and what it eats.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.utils.checkpoint import checkpoint

N_ROWS, CLASSES, WIDTH, TOKENS = 13, 3, 6, 11
INPUTS = {
    "vector": lambda generator: torch.randn(WIDTH, generator=generator),
    "image": lambda generator: torch.randn(2, 6, 6, generator=generator),
    "sequence": lambda generator: torch.randn(4, WIDTH, generator=generator),
    "tokens": lambda generator: torch.randint(1, TOKENS, (5,), generator=generator),
}


@dataclass(frozen=True)
class Unusual:
    """How a model is built, and what it is fed.

    Attributes:
        build: Makes the model, from the global generator.
        inputs: What each parameter of ``forward`` is, the one that scores are about first.
        refused: What the error says, before the first step, where the model is not scored.
        warning: What is said where rows of a batch depend on one another.
        needs_labels: Whether ``forward`` must have labels.
        in_float64: Whether the model computes in float64.
        own_state: Attributes that no state dict holds and that count: replay has those of the end of the training.
        tolerance: Relative, of the scores after a training in float32.
        options: Options of the training.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[tuple[str, str], ...] = (("x", "vector"),)
    refused: str | None = None
    warning: str | None = None
    needs_labels: bool = False
    in_float64: bool = True
    own_state: tuple[str, ...] = ()
    tolerance: float = 1e-4
    options: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """The model, the same in every call, in training mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().train()

    def rows(self) -> list[dict[str, Any]]:
        """Rows with their labels, the same in every call."""
        generator = torch.Generator().manual_seed(1)
        return [
            {**{name: INPUTS[kind](generator) for name, kind in self.inputs}, "labels": (i * i + i // 3) % CLASSES}
            for i in range(N_ROWS)
        ]


class Classifier(nn.Module):
    """A classifier as Trainer wants it: with labels, the loss comes first."""

    def forward(self, x, labels=None):
        return self.with_loss(self.logits(x), labels)

    @staticmethod
    def with_loss(z, labels):
        return z if labels is None else (F.cross_entropy(z, labels), z)


class Layers(Classifier):
    """Layers one behind the other, their output pooled over whatever axes are left, behind a curved function."""

    def __init__(self, *layers, features=WIDTH):
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(features, CLASSES)

    def logits(self, x):
        hidden = torch.tanh(self.layers(x))
        return self.head(hidden.flatten(2).square().mean(2) if hidden.dim() > 2 else hidden)


def vectors(*between):
    """A network on vectors with these layers in the middle."""
    return Layers(nn.Linear(WIDTH, WIDTH), *between)


def images(*between):
    """A network on images with these layers behind its first convolution."""
    return Layers(nn.Conv2d(2, WIDTH, 3, padding=1), *between, nn.Tanh(), nn.Conv2d(WIDTH, WIDTH, 3))


# --- tensors that are shared, derived or wrapped ---------------------------------------------------------------------


class Tied(Classifier):
    """Two layers with one weight: the same parameter, or two parameters in one memory."""

    def __init__(self, *, by_data):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        if by_data:
            self.second.weight.data = self.first.weight.data
        else:
            self.second.weight = self.first.weight

    def logits(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Reused(Classifier):
    """One layer, called twice."""

    def __init__(self, layer=None):
        super().__init__()
        self.layer, self.head = layer or nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class ReusedNorm(Classifier):
    """One BatchNorm behind two convolutions, and one convolution called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm, self.other, self.head = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH), nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        hidden = torch.tanh(self.norm(self.second(torch.tanh(self.norm(self.first(x))))))
        return self.head(torch.tanh(self.other(self.second(hidden))).mean((2, 3)))


class Delta(Classifier):
    """Calls a layer with weights that are its own plus a learned difference, by `functional_call`."""

    def __init__(self):
        super().__init__()
        self.layer = Layers(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)).requires_grad_(requires_grad=False)
        self.delta = nn.Parameter(0.1 * torch.randn(WIDTH, WIDTH))

    def logits(self, x):
        own = dict(self.layer.named_parameters())
        return functional_call(self.layer, {**own, "layers.0.weight": own["layers.0.weight"] + self.delta}, (x,))


class CachedUnit(Classifier):
    """Derives a weight in its first forward in evaluation mode, and keeps it until it trains."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.unit = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES), None

    def logits(self, x):
        if self.training or self.unit is None:
            unit = F.normalize(self.layer.weight)
            self.unit = None if self.training else unit
        else:
            unit = self.unit
        return self.head(torch.tanh(x @ unit.T))


class OddTensors(Classifier):
    """Parameters and buffers without axes, without elements, transposed, expanded, of whole numbers, or missing."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layer.weight = nn.Parameter(torch.randn(WIDTH, WIDTH).T)
        self.scale, self.nothing = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(0, 3))
        self.shift = nn.ParameterDict({"by": nn.Parameter(torch.ones(WIDTH))})
        self.order = nn.Parameter(torch.arange(WIDTH).flip(0), requires_grad=False)
        self.register_buffer("mask", torch.arange(WIDTH) > 0)
        self.register_buffer("halves", torch.ones(WIDTH, dtype=torch.float16))
        self.register_buffer("phase", torch.ones(1, dtype=torch.complex64), persistent=False)
        self.register_buffer("wide", torch.ones(1).expand(WIDTH), persistent=False)
        self.register_buffer("missing", None)

    def logits(self, x):
        x = (x * self.mask * self.halves + self.shift["by"] * self.wide)[:, self.order]
        return self.head(torch.tanh(self.layer(x) * self.scale))


class Reversed(torch.autograd.Function):
    """The same value, the gradient turned around."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -0.5 * gradient


class Reversing(Layers):
    """Turns the gradient around on its way back."""

    def logits(self, x):
        return super().logits(Reversed.apply(x))


class Twice(Classifier):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        self.second, self.head = self.first, nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Sparse(Classifier):
    """Mixes features by a sparse buffer."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("mixing", (torch.eye(WIDTH) + torch.eye(WIDTH).roll(1, 0)).to_sparse())

    def logits(self, x):
        return self.head(torch.tanh(torch.sparse.mm(self.mixing, self.layer(x).T).T))


class SparseWeight(Classifier):
    """Trains a sparse weight, which no snapshot can hold."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.eye(WIDTH).to_sparse()), nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        return self.head(torch.tanh(torch.sparse.mm(self.weight, x.T).T))


class Lazy(Layers):
    """A lazy layer that has seen its first batch."""

    def __init__(self):
        super().__init__(nn.LazyLinear(WIDTH), nn.LazyBatchNorm1d())
        self(torch.randn(3, WIDTH))


# --- state that forward changes -------------------------------------------------------------------------------------


class Teacher(Classifier):
    """A student that is pulled along by a frozen average of itself, which moves in every training forward."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(requires_grad=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        if self.training:
            with torch.no_grad():
                for mean, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    mean.lerp_(new, 0.2)
        return self.head(torch.tanh(self.student(x)) + torch.tanh(self.teacher(x)))


class Drifting(Classifier):
    """Moves a weight in every forward, in evaluation mode, too."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        hidden = torch.tanh(self.layer(x))
        self.layer.bias.data.lerp_(hidden.detach().mean(0), 0.1)
        return self.head(hidden)


class Stateful(Classifier):
    """A recurrent network that continues from the mean of its last states, which it keeps in an attribute."""

    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(WIDTH, 4, batch_first=True), nn.Linear(4, CLASSES)
        self.state = torch.zeros(1, 1, 4)

    def logits(self, x):
        start = self.state.to(x).expand(1, len(x), 4).contiguous()
        out, last = self.rnn(x, (start, start) if isinstance(self.rnn, nn.LSTM) else start)
        last = last[0] if isinstance(last, tuple) else last
        self.state = last.detach().mean(1, keepdim=True)
        return self.head(out[:, -1])


class Growing(Classifier):
    """Keeps a table of positions that grows with the longest sequence, and forgets nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("positions", torch.zeros(0), persistent=False)
        self.longest = 0

    def logits(self, x):
        self.longest = max(self.longest, len(x))
        if len(self.positions) < self.longest:
            self.positions = torch.arange(self.longest).to(x)
        return self.head(torch.tanh(self.layer(x) + 0 * self.positions[: len(x), None]))


class Queue(Classifier):
    """A memory bank in a buffer, read before the batch is put into it, in evaluation mode, too."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("queue", 0.1 * torch.randn(8, WIDTH))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def logits(self, x):
        hidden = torch.tanh(self.layer(x))
        attended = (hidden @ self.queue.clone().T).softmax(1) @ self.queue.clone()
        with torch.no_grad():
            for row in hidden:
                self.queue[int(self.place) % 8] = row
                self.place += 1
        return self.head(hidden + attended)


class Counter(Classifier):
    """Counts its forward passes in an attribute, and grows sharper with the count."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.count = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES), 0

    def logits(self, x):
        self.count += 1
        return self.head(torch.tanh(self.layer(x) * (1 + 0.01 * self.count)))


class Noisy(Classifier):
    """Adds noise in training, from a generator of its own, and keeps its last means in a deque."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.generator, self.recent = torch.Generator().manual_seed(3), deque([torch.zeros(WIDTH)], maxlen=3)

    def logits(self, x):
        if self.training:
            x = x + 0.1 * torch.randn(x.shape, generator=self.generator)
        self.recent.append(x.detach().mean(0))
        return self.head(torch.tanh(self.layer(x)))


class Merging(Classifier):
    """A low-rank difference that ``eval()`` merges into the weight and ``train()`` takes out again, as in loralib."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layer.weight.requires_grad_(requires_grad=False)
        self.down, self.up = nn.Parameter(torch.randn(2, WIDTH)), nn.Parameter(0.1 * torch.randn(WIDTH, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            sign = -1 if mode else 1
            self.layer.weight.data += sign * (self.up @ self.down).data
            self.merged = not mode
        return self

    def logits(self, x):
        delta = 0 if self.merged else x @ self.down.T @ self.up.T
        return self.head(torch.tanh(self.layer(x) + delta))


class Fusing(Classifier):
    """Two linear layers that ``eval()`` multiplies into one, and ``train()`` brings back."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.head, self.apart = nn.Linear(WIDTH, CLASSES), ()

    def train(self, mode=True):
        super().train(mode)
        if mode and self.apart:
            (self.first, self.second), self.apart = self.apart, ()
        elif not mode and not self.apart:
            self.apart = (self.first, self.second)
            weight = self.second.weight.detach() @ self.first.weight.detach()
            self.first, self.second = nn.Identity(), nn.Linear(WIDTH, WIDTH)
            self.second.weight, self.second.bias = nn.Parameter(weight), self.apart[1].bias
        return self

    def logits(self, x):
        return self.head(torch.tanh(self.second(self.first(x))))


class Copying(Classifier):
    """A layer for evaluation that ``eval()`` fills with the average of two that are trained."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.mean = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mean.requires_grad_(requires_grad=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def train(self, mode=True):
        super().train(mode)
        if not mode:
            torch.lerp(self.first.weight.data, self.second.weight.data, 0.5, out=self.mean.weight.data)
        return self

    def logits(self, x):
        hidden = (self.first(x) + self.second(x)) / 2 if self.training else self.mean(x)
        return self.head(torch.tanh(hidden))


class BiasOfEval(Classifier):
    """A bias that ``eval()`` computes of a weight, and ``train()`` deletes: as attention biases in the first LeViT."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.biases = nn.Parameter(torch.randn(2 * WIDTH))

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        if mode and hasattr(self, "bias"):
            del self.bias
        elif not mode:
            self.bias = self.biases[::2].clone()
        return self

    def logits(self, x):
        return self.head(torch.tanh(self.layer(x) + (self.biases[::2] if self.training else self.bias)))


class Gated(Classifier):
    """A factor that ``train()`` and ``eval()`` set."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.factor = 0.5

    def train(self, mode=True):
        super().train(mode)
        self.factor = 0.5 if mode else 1.0
        return self

    def logits(self, x):
        return self.head(torch.tanh(self.factor * self.layer(x)))


# --- signatures -----------------------------------------------------------------------------------------------------


class TwoInputs(Classifier):
    """Sees an image and a vector."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(2, WIDTH, 3), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x, extra, labels=None):
        hidden = torch.tanh(self.conv(x)).mean((2, 3)) * torch.tanh(self.layer(extra))
        return self.with_loss(self.head(hidden), labels)


class Keywords(Classifier):
    """Hands on whatever else it is given."""

    def __init__(self):
        super().__init__()
        self.body = vectors()

    def forward(self, x, **kwargs):
        return self.body(x, kwargs.get("labels"))


class NeedsLabels(Classifier):
    """Cannot be called without labels, and uses them for nothing but the loss."""

    def __init__(self):
        super().__init__()
        self.body = vectors()

    def forward(self, x, labels):
        return self.body(x, labels)


# --- architectures --------------------------------------------------------------------------------------------------


class Experts(Classifier):
    """Sends each row to the expert that its gate likes best."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        weight, chosen = self.gate(x).softmax(1).max(1)
        hidden = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero().flatten()
            hidden = hidden.index_add(0, rows, weight[rows, None] * torch.tanh(expert(x[rows])))
        return self.head(hidden)


class Fourier(Classifier):
    """Filters in the frequency domain, by complex weights."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(WIDTH // 2 + 1, dtype=torch.complex64))
        self.head = nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        return self.head(torch.tanh(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=WIDTH)))


class RealFourier(Fourier):
    """The same filter, its weights held as pairs of real numbers."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.view_as_real(self.filter.detach()).clone())

    def logits(self, x):
        spectrum = torch.fft.rfft(x) * torch.view_as_complex(self.filter)
        return self.head(torch.tanh(torch.fft.irfft(spectrum, n=WIDTH)))


class Checkpointed(Classifier):
    """Computes its middle again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(0.3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        return self.head(checkpoint(self.middle, x, use_reentrant=False))


class Attention(Classifier):
    """Multi-head attention, which has a fast way of its own in evaluation mode."""

    def __init__(self, *, encoder=False):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True) if encoder else None
        self.attention, self.head = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        x = x if self.encoder is None else self.encoder(x)
        return self.head(torch.tanh(self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Tokens(Classifier):
    """Reads tokens through an embedding."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding, self.layer, self.head = embedding, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, labels=None):
        hidden = self.embedding(input_ids)
        hidden = torch.tanh(self.layer(hidden))
        return self.with_loss(self.head(hidden.mean(1) if hidden.dim() == 3 else hidden), labels)


class LowPrecision(Layers):
    """Casts its input to the dtype of its weights."""

    def logits(self, x):
        return super().logits(x.to(self.head.weight.dtype))


class OneChannelFirst(Classifier):
    """A convolution with BatchNorm over time, and a ReLU in place."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 2), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True))
        self.head = nn.Linear(WIDTH, CLASSES)

    def logits(self, x):
        return self.head(torch.tanh(self.body(x.transpose(1, 2)).mean(2)))


class Recurrent(Classifier):
    """An LSTM in both directions, with dropout between its layers."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, 4, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def logits(self, x):
        return self.head(self.rnn(x)[0].mean(1))


class AlwaysDropping(Layers):
    """Dropout in evaluation mode, too."""

    def logits(self, x):
        return super().logits(F.dropout(x, 0.5, training=True))


class Centered(Layers):
    """Takes the mean of the batch away."""

    def logits(self, x):
        return super().logits(x - x.mean(0))


class Detached(Layers):
    """Computes its features without gradients."""

    def logits(self, x):
        with torch.no_grad():
            x = x * 2
        return super().logits(x)


class UntrackedNorm(Layers):
    """BatchNorm without running statistics."""

    def __init__(self):
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH, track_running_stats=False))


def frozen_base():
    """Only the head is trained."""
    model = vectors(nn.Tanh(), nn.BatchNorm1d(WIDTH))
    model.layers.requires_grad_(requires_grad=False)
    return model


def fake_quantized(*, observing):
    """Rounds what lies in the middle to 256 steps; its observer continues in evaluation mode, or is off."""
    quantize = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, averaging_constant=0.5)
    model = vectors(quantize)
    model(torch.randn(9, WIDTH))
    if not observing:
        quantize.disable_observer()
    return model


DRAWS = "draws random numbers in forward in evaluation mode.*only while module.training"
DEPENDS = "changes by .* with the rows that share its batch"
IMAGE, SEQUENCE, IDS = (("x", "image"),), (("x", "sequence"),), (("input_ids", "tokens"),)
MODELS = {
    "BatchNorm1d": Unusual(lambda: vectors(nn.BatchNorm1d(WIDTH))),
    "BatchNorm1d, not affine": Unusual(lambda: vectors(nn.BatchNorm1d(WIDTH, affine=False))),
    "BatchNorm1d, cumulative": Unusual(lambda: vectors(nn.BatchNorm1d(WIDTH, momentum=None))),
    "BatchNorm1d, no statistics": Unusual(UntrackedNorm, warning=DEPENDS),
    "BatchNorm2d": Unusual(lambda: images(nn.BatchNorm2d(WIDTH)), IMAGE),
    "BatchNorm2d, not affine": Unusual(lambda: images(nn.BatchNorm2d(WIDTH, affine=False)), IMAGE),
    "BatchNorm2d, no statistics": Unusual(
        lambda: images(nn.BatchNorm2d(WIDTH, track_running_stats=False)), IMAGE, warning=DEPENDS
    ),
    "SyncBatchNorm": Unusual(lambda: images(nn.SyncBatchNorm(WIDTH)), IMAGE),
    "GroupNorm": Unusual(lambda: images(nn.GroupNorm(2, WIDTH)), IMAGE),
    "InstanceNorm2d, no statistics": Unusual(lambda: images(nn.InstanceNorm2d(WIDTH)), IMAGE),
    "InstanceNorm2d, statistics": Unusual(
        lambda: images(nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True)), IMAGE
    ),
    "LayerNorm": Unusual(lambda: vectors(nn.LayerNorm(WIDTH))),
    "RMSNorm": Unusual(lambda: vectors(nn.RMSNorm(WIDTH))),
    "LocalResponseNorm": Unusual(lambda: images(nn.LocalResponseNorm(3)), IMAGE),
    "FakeQuantize": Unusual(partial(fake_quantized, observing=False), in_float64=False),
    "FakeQuantize, observing": Unusual(partial(fake_quantized, observing=True), in_float64=False, warning=DEPENDS),
    "weight_norm, old": Unusual(lambda: vectors(weight_norm(nn.Linear(WIDTH, WIDTH)))),
    "weight_norm, new": Unusual(lambda: vectors(parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)))),
    "weight_norm on a convolution before BatchNorm": Unusual(
        lambda: images(parametrizations.weight_norm(nn.Conv2d(WIDTH, WIDTH, 1)), nn.BatchNorm2d(WIDTH)), IMAGE
    ),
    "spectral_norm, old": Unusual(lambda: vectors(nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)))),
    "spectral_norm, new": Unusual(lambda: vectors(parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)))),
    "orthogonal": Unusual(lambda: vectors(parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)))),
    "tied by attribute": Unusual(partial(Tied, by_data=False)),
    "tied by data": Unusual(partial(Tied, by_data=True)),
    "layer reused": Unusual(Reused),
    "convolution and BatchNorm reused": Unusual(ReusedNorm, IMAGE),
    "functional_call with a difference": Unusual(Delta),
    "derived weight cached": Unusual(CachedUnit),
    "sparse buffer": Unusual(Sparse),
    "lazy layers": Unusual(Lazy),
    "teacher": Unusual(Teacher),
    "weights moved by forward": Unusual(Drifting, refused="changes its weights in forward"),
    "LSTM with a state": Unusual(partial(Stateful, nn.LSTM), SEQUENCE, own_state=("state",)),
    "GRU with a state": Unusual(partial(Stateful, nn.GRU), SEQUENCE, own_state=("state",)),
    "growing table": Unusual(Growing),
    "memory queue": Unusual(Queue),
    "counter": Unusual(Counter, own_state=("count",)),
    "two inputs": Unusual(TwoInputs, (("x", "image"), ("extra", "vector"))),
    "keywords": Unusual(Keywords),
    "needs labels": Unusual(NeedsLabels, needs_labels=True),
    "mixture of experts": Unusual(Experts),
    "complex weights": Unusual(Fourier, in_float64=False, options={"optim": "adamw_torch"}),
    "Fourier transform": Unusual(RealFourier),
    "checkpointing": Unusual(Checkpointed),
    "MultiheadAttention": Unusual(Attention, SEQUENCE),
    "TransformerEncoderLayer": Unusual(partial(Attention, encoder=True), SEQUENCE),
    "Embedding with max_norm": Unusual(lambda: Tokens(nn.Embedding(TOKENS, WIDTH, max_norm=1.0)), IDS),
    "EmbeddingBag": Unusual(
        lambda: Tokens(nn.EmbeddingBag(TOKENS, WIDTH)), IDS, refused="expected one vector per token"
    ),
    "dropout": Unusual(lambda: vectors(nn.Dropout(0.3), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2))),
    "dropout of channels": Unusual(lambda: images(nn.Dropout2d(0.3), nn.RReLU()), IMAGE),
    "bfloat16 weights": Unusual(lambda: LowPrecision(nn.Linear(WIDTH, WIDTH)).bfloat16()),
    "tensors of odd kinds": Unusual(OddTensors),
    "gradient reversal": Unusual(lambda: Reversing(nn.Linear(WIDTH, WIDTH))),
    "module under two names": Unusual(Twice),
    "noise from its own generator": Unusual(Noisy),
    "low-rank difference merged by eval": Unusual(Merging, refused="train.. or eval.. of a module changes the weight"),
    "layers fused by eval": Unusual(Fusing, refused="train.. or eval.. of a module changes the weight"),
    "weight copied by eval": Unusual(Copying, refused="train.. or eval.. of a module changes the weight"),
    "bias computed by eval": Unusual(BiasOfEval),
    "gate set by train": Unusual(Gated),
    "pruned": Unusual(lambda: vectors(prune.l1_unstructured(nn.Linear(WIDTH, WIDTH), "weight", 0.4))),
    "Conv1d, BatchNorm1d, ReLU in place": Unusual(OneChannelFirst, SEQUENCE),
    "LSTM in both directions": Unusual(Recurrent, SEQUENCE),
    "dropout in evaluation mode": Unusual(lambda: AlwaysDropping(nn.Linear(WIDTH, WIDTH)), warning=DRAWS),
    "mean of the batch": Unusual(lambda: Centered(nn.Linear(WIDTH, WIDTH)), warning=DEPENDS),
    "features without gradients": Unusual(lambda: Detached(nn.Linear(WIDTH, WIDTH)), refused="does not depend on"),
    "frozen base": Unusual(frozen_base),
}

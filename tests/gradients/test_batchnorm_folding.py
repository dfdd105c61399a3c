from dataclasses import replace

import models
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vog_hf.gradients.foldable_modules import find_folding


def warmed(model):
    """A model whose BatchNorms have seen something, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def folded(model, x, *, channels_last=False):
    """What `find_folding` sees in one pass of ``x``."""
    return replace(find_folding(model, lambda: model(x.detach().requires_grad_())), channels_last=channels_last)


def logits_and_gradient(model, x):
    """Of the sum of the first logit."""
    x = x.detach().requires_grad_()
    logits = model(x)
    logits = logits["logits"] if isinstance(logits, dict) else logits
    return logits, torch.autograd.grad(logits[:, 0].sum(), x)[0]


class PreActivation(nn.Module):
    """BatchNorm before the convolution, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.norm, self.convolution, self.again = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.convolution(self.norm(x).relu())
        return self.again(self.again(x).relu()).mean((2, 3))


class ReadTwice(nn.Module):
    """A convolution whose output goes around its BatchNorm, too."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.convolution(x)
        return (self.norm(x) + x).mean((2, 3))


class ReadOutside(ReadTwice):
    """A convolution whose output the model returns, too."""

    def forward(self, x):
        x = self.convolution(x)
        return {"logits": self.norm(x).mean((2, 3)), "features": x}


class ChangedInPlace(ReadTwice):
    """A convolution whose output is changed in place before its BatchNorm."""

    def forward(self, x):
        x = self.convolution(x)
        x += 1
        return self.norm(x).mean((2, 3))


def timm_model(name):
    """A timm model, small."""
    import timm

    return timm.create_model(name, num_classes=4)


CASES = {
    "conv net": (lambda: models.conv_net().model, (5, 3, 8, 8), 2, 0),
    "pre-activation": (PreActivation, (5, 3, 8, 8), 0, 2),
    "waveform": (
        lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(24, 3)),
        (5, 1, 8),
        1,
        0,
    ),
    "no affine weights": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False), nn.Flatten()),
        (5, 3, 8, 8),
        1,
        0,
    ),
    "vectors": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), (7, 5), 0, 1),
    "timm resnet": (lambda: timm_model("test_resnet"), (3, 3, 32, 32), None, None),
    "timm efficientnet": (lambda: timm_model("test_efficientnet"), (3, 3, 32, 32), None, None),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_folded_model_is_the_same_function(name, channels_last):
    """Logits and input gradients agree in float64, whatever comes before the BatchNorm."""
    make, shape, n_pairs, n_affine = CASES[name]
    model = warmed(make()).double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = logits_and_gradient(model, x)
    folding = folded(model, x, channels_last=channels_last)
    assert (n_pairs or len(folding.pairs)) == len(folding.pairs)
    assert (n_affine or len(folding.affine)) == len(folding.affine)
    assert folding.pairs or folding.affine
    with folding.installed():
        assert_close(logits_and_gradient(model, folding.to_memory_format(x)), expected, rtol=1e-10, atol=1e-12)


def test_other_weights_are_taken_over():
    """After `refresh` the folded model computes with the weights and statistics that the modules hold now."""
    model = warmed(models.conv_net().model).double()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    folding = folded(model, x)
    with folding.installed() as folded_modules:
        before = model(x)
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.5)
        folded_modules.refresh()
        found = logits_and_gradient(model, x)
    assert_close(found, logits_and_gradient(model, x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found[0], before)


def test_the_model_is_left_as_found():
    """Forwards, hooks, parameters and buffers are those of before, after an error, too."""
    model = warmed(models.conv_net().model)
    x = torch.randn(5, 3, 8, 8)
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    folding = folded(model, x)
    with pytest.raises(RuntimeError, match="in between"), folding.installed():
        raise RuntimeError("in between")
    for name, value in model.state_dict().items():
        assert (value.data_ptr(), True) == (before[name][0], torch.equal(value, before[name][1]))
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_what_is_not_affine_is_left_alone():
    """BatchNorm with statistics of the batch, with hooks, in training mode: not folded. Plain ones are."""
    x = torch.randn(5, 3, 8, 8)
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert not folded(own, x)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert not folded(model, x)
    model.eval()
    handle = model[1].register_forward_hook(lambda module, args, output: output + 1)
    assert not folded(model, x)
    handle.remove()
    assert len(folded(model, x).pairs) == 1
    nn.utils.parametrizations.weight_norm(model[0])
    assert (len(folded(model, x).pairs), len(folded(model, x).affine)) == (0, 1)


@pytest.mark.parametrize("make", [ReadTwice, ReadOutside, ChangedInPlace])
def test_a_convolution_that_something_else_reads_keeps_its_output(make):
    """Only the BatchNorm becomes a multiply-add; without the other reader (or change) the convolution takes it over."""
    model = warmed(make()).double()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    folding = folded(model, x)
    assert (len(folding.pairs), len(folding.affine)) == (0, 1)
    expected = logits_and_gradient(model, x)
    with folding.installed():
        assert_close(logits_and_gradient(model, x), expected, rtol=1e-10, atol=1e-12)
    alone = nn.Sequential(model.convolution, model.norm)
    assert (len(folded(alone, x).pairs), len(folded(alone, x).affine)) == (1, 0)


def test_what_is_folded_is_said():
    """A person reads how many BatchNorms went where."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    x = torch.randn(5, 3, 8, 8)
    said = "1 BatchNorms folded into convolutions, 1 as multiply-adds, channels last"
    assert str(folded(model, x, channels_last=True)) == said
    assert str(folded(nn.Linear(8, 2), x)) == "nothing folded"


def test_global_hooks_keep_every_module_as_it_is():
    """A hook on all modules would see a convolution's folded output, so nothing is folded while there is one."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(5, 3, 8, 8)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    assert not folded(model, x)
    handle.remove()
    assert folded(model, x)

import json

import pytest

from vog_hf.config import VoGConfig
from vog_hf.errors import ConfigError
from vog_hf.gradients.tasks import TASKS
from vog_hf.metric.vocabulary import target_of_column


def my_target(outputs, batch):
    """A custom target."""
    return outputs.logits[:, 0]


def other_target(outputs, batch):
    """Another custom target."""
    return outputs.logits[:, 1]


def loss(outputs, batch):
    """A function named like a target."""
    return outputs.loss


def early(outputs, batch):
    """A function named like a window."""
    return outputs.logits[:, 0]


class Unique:
    """A target with state that cannot be copied: a model, a lock."""

    def __call__(self, outputs, batch):
        return outputs.logits[:, 0]

    def __deepcopy__(self, memo):
        raise AssertionError("the target was copied")


def test_the_defaults_are_the_papers():
    """By default VoG uses the given label's logit, averaged over channels, in float32."""
    config = VoGConfig()
    assert config.to_dict() == {
        "target": ["logit"],
        "label": "given",
        "label_column": None,
        "task": None,
        "reduce_channels": "auto",
        "dtype": "float32",
        "heat_maps": True,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "loss"},
        {"target": ("logit", "loss", "probability")},
        {"label": "predicted", "reduce_channels": False, "dtype": "model", "heat_maps": False},
        {"label_column": "fine_label", "reduce_channels": True},
        *({"task": task} for task in TASKS),
        {"task": "single_label_classification", "label": "predicted"},
    ],
)
def test_every_configuration_of_names_survives_json(options):
    """A configuration is restored from its JSON."""
    config = VoGConfig(**options)
    assert VoGConfig.from_json(config.to_json()) == config
    assert VoGConfig.from_dict(config.to_dict()) == config
    assert json.loads(config.to_json()) == config.to_dict()


def test_targets_may_be_a_list_and_one_target_may_stand_alone():
    """A list means the same as a tuple; `targets` is always a tuple."""
    assert VoGConfig(target=["logit", "loss"]) == VoGConfig(target=("logit", "loss"))
    assert VoGConfig(target="loss").targets == ("loss",)
    assert VoGConfig(target=("loss",)).targets == ("loss",)
    assert VoGConfig.from_dict(VoGConfig(target=("loss",)).to_dict()).targets == ("loss",)


def test_a_callable_target_stands_by_its_qualified_name_and_cannot_be_read_back():
    """JSON records the name of a function, from which the function cannot be restored; the error says so."""
    config = VoGConfig(target=("logit", my_target))
    assert config.target_names == ("logit", f"{__name__}.my_target")
    assert config.to_dict()["target"] == ["logit", f"{__name__}.my_target"]
    with pytest.raises(ConfigError, match=rf"or a callable.* got '{__name__}\.my_target'"):
        VoGConfig.from_json(config.to_json())


def test_a_callable_target_is_never_copied():
    """A target may hold a model: writing the configuration down does not duplicate it."""
    target = Unique()
    config = VoGConfig(target=target)
    assert config.to_dict()["target"] == [f"{__name__}.Unique"]
    assert config.targets[0] is target


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("loss", ("vog",)),
        (("logit", "loss"), ("vog", "vog_loss")),
        (("loss", "logit", "probability"), ("vog", "vog_logit", "vog_probability")),
        ((my_target, "logit"), ("vog", "vog_logit")),
        (("logit", my_target, other_target), ("vog", "vog_my_target", "vog_other_target")),
        ((loss, "logit"), ("vog", "vog_logit")),
    ],
)
def test_the_first_target_fills_vog_and_the_others_are_named(target, names):
    """One column per target: `vog`, then `vog_` and the target's or the function's name."""
    assert VoGConfig(target=target).column_names == names


@pytest.mark.parametrize(
    ("column", "target"),
    [
        ("vog", "logit"),
        ("vog_early", "logit"),
        ("vog_percentile", "logit"),
        ("vog_loss", "loss"),
        ("vog_loss_class_normalized", "loss"),
        ("vog_scalar_normalized", "module.<locals>.scalar"),
        ("loss", None),
        ("label", None),
        ("gradient_magnitude", None),
        ("vog_probability", None),
    ],
)
def test_a_columns_target_is_known_by_its_name(column, target):
    """Every window and normalization of a VoG column is traced to its target; companions have none."""
    assert target_of_column(column, ["logit", "loss", "module.<locals>.scalar"]) == target
    assert target_of_column(column, []) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "logits"}, "target must be logit, probability, loss or a callable.* got 'logits'"),
        ({"target": ("logit", 3)}, "got 3"),
        ({"target": None}, "got None"),
        ({"target": ()}, "target must name at least one of logit, probability, loss"),
        ({"target": []}, "target must name at least one"),
        ({"target": ("loss", "loss")}, r"targets must differ from one another, got \('loss', 'loss'\)"),
        ({"target": (my_target, my_target)}, "targets must differ from one another"),
        ({"target": ("logit", "loss", loss)}, r"different column names, got \('vog', 'vog_loss', 'vog_loss'\)"),
        ({"target": ("logit", early)}, "vog_early.*rename the function"),
        ({"label": "true"}, "label must be one of 'given', 'predicted', got 'true'"),
        ({"label": None}, "label must be one of .* got None"),
        ({"label_column": 3}, "label_column must be the name of a column or None, got 3"),
        ({"task": "ranking"}, "task must be one of None, 'single_label_classification', .* got 'ranking'"),
        ({"reduce_channels": "yes"}, "reduce_channels must be one of 'auto', True, False, got 'yes'"),
        ({"reduce_channels": 1}, "reduce_channels must be one of 'auto', True, False, got 1"),
        ({"dtype": "float16"}, "dtype must be one of 'float32', 'bfloat16', 'model', got 'float16'"),
        ({"heat_maps": "no"}, "heat_maps must be one of True, False, got 'no'"),
        (
            {"task": "regression", "label": "predicted"},
            r"one label per row \(single_label_.*, multiple_choice\), got task='regression'; use label='given'",
        ),
        ({"task": "regression", "target": "probability"}, "target 'probability' does not exist for task 'regression'"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_made(options, message):
    """A wrong value is an error at construction; the message has the choices and the value."""
    with pytest.raises(ConfigError, match=message):
        VoGConfig(**options)


def test_unknown_options_are_refused_by_name():
    """A misspelled option in a file is refused."""
    with pytest.raises(ConfigError, match=r"unknown options \['targets'\]; a VoGConfig has \['target', "):
        VoGConfig.from_dict({"targets": "loss"})
    with pytest.raises(TypeError, match="targets"):
        VoGConfig(targets="loss")
    assert VoGConfig.from_dict({"target": "loss"}) == VoGConfig(target="loss")


def test_options_are_given_by_name_and_never_change():
    """A configuration is a value: keyword-only, frozen, comparable."""
    with pytest.raises(TypeError):
        VoGConfig("loss")
    with pytest.raises(AttributeError):
        VoGConfig().target = "loss"
    assert VoGConfig() == VoGConfig()
    assert VoGConfig() != VoGConfig(heat_maps=False)
    assert len({VoGConfig(), VoGConfig(), VoGConfig(target="loss")}) == 2

"""The oracle: one row, one snapshot, plain autograd and numpy, float64; nothing of `vog_hf` is imported.

A *row* is what the model eats for one example, without a batch axis and without padding: a dict of tensors under the
names of ``forward``'s parameters, the main input first (``{"pixel_values": ...}``, ``{"input_ids": ...,
"attention_mask": ...}``), or a pair ``(input, label)`` for a module that takes one tensor. *States* are state dicts,
whole or partial, in the order of training; None = the model as it is. Gradients are a list with one array
``[snapshots, *input]`` per row, so that rows may differ in length.

    gradients = reference_gradients(model, states, rows, "logit", labels)
    reference_vog(gradients)                    # [rows], window "all"; also "early" and "late"
    reference_magnitude(gradients)              # [rows]
    reference_trajectory(gradients)             # [rows, snapshots]
    reference_csg_trajectory(gradients)         # [rows, snapshots]; its mean over snapshots is csg
    reference_heat_map(gradients[0])            # pooled map of row 0
    reference_dynamics(reference_logits(model, states, rows), labels)   # {name: [rows]}

The model that is handed in is copied, never changed. Hand in the plain module, not a compiled or patched one.
"""

import copy
import math

import numpy as np
import torch

WINDOWS = ("all", "early", "late")


# --- gradients ------------------------------------------------------------------------------------------------------


def reference_gradients(model, states, rows, target="logit", labels=None, *, task="single_label_classification"):
    """Gradient of each row's target w.r.t. its input, per row ``[snapshots, *input]`` in float64.

    The input is the first entry of the row if it holds floats, else the embeddings of its ``input_ids``. A label that
    is None, -1 or -100 is replaced by the class that the *last* state predicts. ``target`` is "logit", "probability",
    "loss" or ``target(outputs, inputs) -> [1]``; ``task`` is one of the names that `_scalar` compares with.
    """
    rows, labels = _unpaired(rows, labels)
    if task == "single_label_classification":
        final = reference_logits(model, states, rows)
        labels = [
            int(np.argmax(logits[-1])) if _is_missing(label) else int(label)
            for logits, label in zip(final, labels, strict=True)
        ]
    gradients = [[] for _ in rows]
    for snapshot in _snapshots(model, states):
        for i, row in enumerate(rows):
            gradients[i].append(_gradient(snapshot, row, labels[i], target, task))
    return [np.stack(of_row) for of_row in gradients]


def reference_logits(model, states, rows, labels=None):
    """The logits of each row, per row ``[snapshots, ...]``; labels are needed only to feed a decoder."""
    rows, labels = _unpaired(rows, labels)
    logits = [[] for _ in rows]
    for snapshot in _snapshots(model, states):
        for i, row in enumerate(rows):
            with torch.no_grad():
                logits[i].append(_logits(_call(snapshot, _inputs(snapshot, row, labels[i])))[0].numpy())
    return [np.stack(of_row) for of_row in logits]


def _unpaired(rows, labels):
    if labels is None:
        labels = [None if isinstance(row, dict) else row[1] for row in rows]
    return [row if isinstance(row, dict) else {None: row[0]} for row in rows], list(labels)


def _is_missing(label):
    return label is None or int(label) in (-1, -100)


def _snapshots(model, states):
    """One after the other, a copy with each state's weights: float64, evaluation mode, no labels, no cache.

    A copy each, after ``train()``: some models keep what they computed of their weights in evaluation mode.
    """
    for state in [{}] if states is None else states:
        snapshot = copy.deepcopy(model).double()
        unknown = snapshot.load_state_dict(state, strict=False).unexpected_keys
        assert not unknown, unknown
        snapshot.train()
        yield snapshot.eval()


def _inputs(model, row, label):
    """The row as a batch of one, in float64; an encoder-decoder gets its labels, shifted by one, as decoder input."""
    inputs = {name: value.unsqueeze(0) for name, value in row.items()}
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    config = getattr(model, "config", None)
    if "input_ids" in inputs and getattr(config, "is_encoder_decoder", False):
        shifted = [config.decoder_start_token_id, *label.tolist()[:-1]]
        inputs["decoder_input_ids"] = torch.tensor([[config.pad_token_id if t == -100 else t for t in shifted]])
    return inputs


def _call(model, inputs):
    return model(inputs[None]) if None in inputs else model(**inputs)


def _logits(outputs):
    if isinstance(outputs, torch.Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, dict) else outputs[0]


def _gradient(model, row, label, target, task):
    inputs = _inputs(model, row, label)
    name = next(iter(inputs))
    if name == "input_ids":
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model
        x = encoder.get_input_embeddings()(inputs.pop(name))
        name = "inputs_embeds"
    else:
        x = inputs[name]
    inputs[name] = x = x.detach().clone().requires_grad_()
    outputs = _call(model, inputs)
    scalar = target(outputs, inputs)[0] if callable(target) else _scalar(_logits(outputs)[0], label, target, task)
    return torch.autograd.grad(scalar, x)[0][0].numpy()


def _scalar(z, label, target, task):
    """The number that is differentiated, of the logits of one row."""
    if task == "single_label_classification":
        return {"logit": z[label], "probability": z.softmax(0)[label], "loss": -z.log_softmax(0)[label]}[target]
    if task == "multi_label_classification":
        positive = [j for j in range(len(z)) if label[j] == 1]
        if target == "loss":
            return -sum(torch.sigmoid(z[j] if j in positive else -z[j]).log() for j in range(len(z))) / len(z)
        return sum(((z[j] if target == "logit" else torch.sigmoid(z[j])) for j in positive), start=0 * z.sum())
    if task == "regression":
        wanted = torch.as_tensor(label, dtype=torch.float64).reshape(-1)
        return z.sum() if target == "logit" else ((z.reshape(-1) - wanted) ** 2).mean()
    if task == "causal_language_model":
        pairs = [(z[i - 1], int(label[i])) for i in range(1, len(label)) if label[i] != -100]
    elif task in ("token_prediction", "token_classification"):
        pairs = [(z[i], int(label[i])) for i in range(len(label)) if label[i] != -100]
    else:
        raise ValueError(task)
    return sum(_scalar(logits, token, target, "single_label_classification") for logits, token in pairs) / len(pairs)


# --- what is made of gradients --------------------------------------------------------------------------------------


def reference_window(n_snapshots, window="all"):
    """Which snapshots a window holds, as a slice."""
    width = max(2, n_snapshots // 3)
    return {"all": slice(None), "early": slice(0, width), "late": slice(n_snapshots - width, None)}[window]


def reference_deviation(gradient, *, channel_mean=False):
    """Population standard deviation over the snapshots of one row's gradient ``[snapshots, *input]``."""
    gradient = np.asarray(gradient, dtype=np.float64)
    return np.std(gradient.mean(axis=1) if channel_mean else gradient, axis=0, ddof=0)


def reference_vog(gradients, *, window="all", channel_mean=False):
    """VoG of each row, ``[rows]``: the mean of the standard deviations over the row's elements."""
    return np.array(
        [
            reference_deviation(gradient[reference_window(len(gradient), window)], channel_mean=channel_mean).mean()
            for gradient in gradients
        ]
    )


def reference_trajectory(gradients, *, channel_mean=False):
    """VoG of each row over the snapshots up to each one, ``[rows, snapshots]``."""
    n_snapshots = len(gradients[0])
    return np.stack(
        [reference_vog([g[: k + 1] for g in gradients], channel_mean=channel_mean) for k in range(n_snapshots)], axis=1
    )


def reference_magnitude(gradients, *, channel_mean=False):
    """Mean of |gradient| over snapshots and elements, ``[rows]``."""
    return np.array([np.abs(g.mean(axis=1) if channel_mean else g).mean() for g in gradients])


def reference_csg_trajectory(gradients):
    """Squared length of each row's gradient of the loss at each snapshot, ``[rows, snapshots]``; all channels."""
    return np.array([[sum(value**2 for value in snapshot.ravel()) for snapshot in of_row] for of_row in gradients])


def reference_heat_map(gradient, *, channel_mean=False, tokens=False):
    """Where one row's gradient changed: ``[tokens]``, at most ``[32, 32]``, or at most ``[1024]``."""
    deviation = reference_deviation(gradient, channel_mean=channel_mean)
    if tokens:
        return deviation.mean(axis=-1)
    if deviation.ndim == 1:
        return _pooled(deviation, 1024)
    image = deviation.reshape(-1, *deviation.shape[-2:]).mean(axis=0)
    return _pooled(_pooled(image, 32).T, 32).T


def _pooled(values, at_most):
    """Means over at most `parts` parts of the first axis; part i is floor(i n / parts) to ceil((i + 1) n / parts)."""
    n = len(values)
    parts = min(at_most, n)
    return np.stack([values[i * n // parts : math.ceil((i + 1) * n / parts)].mean(axis=0) for i in range(parts)])


# --- what is made of scores and logits ------------------------------------------------------------------------------


def reference_class_normalized(scores, labels):
    """Z-score of each score within its class, 0 in a class of one row or of equal scores."""
    scores = [float(score) for score in scores]
    normalized = []
    for score, label in zip(scores, labels, strict=True):
        peers = [s for s, other in zip(scores, labels, strict=True) if other == label]
        equal = all(peer == peers[0] for peer in peers)
        normalized.append(0.0 if equal else (score - np.mean(peers)) / np.std(peers, ddof=0))
    return np.array(normalized)


def reference_percentile(scores):
    """100 * (average rank - 0.5) / rows: a row's rank is over those below it and half of those equal to it."""
    scores = [float(score) for score in scores]
    return np.array(
        [100 * (sum(s < x for s in scores) + sum(s == x for s in scores) / 2) / len(scores) for x in scores]
    )


def reference_dynamics(logits, labels):
    """Companions of single-label classification: ``{name: [rows]}`` of logits ``[snapshots, classes]`` per row."""
    rows = [_row_dynamics(of_row, int(label)) for of_row, label in zip(logits, labels, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _row_dynamics(logits, label):
    loss, confidence, margin, el2n, correct = [], [], [], [], []
    for snapshot in logits:
        z = [float(value) for value in snapshot]
        top = max(z)
        total = sum(math.exp(value - top) for value in z)
        probability = [math.exp(value - top) / total for value in z]
        loss.append(-(z[label] - top - math.log(total)))
        confidence.append(probability[label])
        margin.append(z[label] - max(z[j] for j in range(len(z)) if j != label))
        el2n.append(math.sqrt(sum((p - (j == label)) ** 2 for j, p in enumerate(probability))))
        correct.append(z.index(top) == label)
    k = len(logits)
    mean = sum(confidence) / k
    forgotten = sum(correct[t] and not correct[t + 1] for t in range(k - 1))
    return {
        "loss": sum(loss) / k,
        "confidence": mean,
        "variability": math.sqrt(sum((p - mean) ** 2 for p in confidence) / k),
        "correctness": sum(correct) / k,
        "forgetting": forgotten if any(correct) else k,
        "margin": sum(margin) / k,
        "el2n": sum(el2n) / k,
        "prediction_probability": max(probability),  # of the last snapshot
    }

"""Checkpoints of the mmdetection 2.x generation: FASA, IIF, EQL, EQLv2, Seesaw, group softmax, ECM, GOL, cRT and LWS.

Sources: yuhangzang/FASA, kostas1515/iif, kostas1515/GOL, tztztztztz/eqlv2, janghyuncho/ECM-Loss, mmdetection. Names and
background are those of 3.x; FASA's statistics were parameters of the box head. The config stored with the weights may
say what the weights do not: the loss, the classifier and its temperature. It is read as text, never run.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import torch

from ltpipe.config.detector import modern_spelling
from ltpipe.interop.layout import Layout, Rule, State
from ltpipe.methods.iif.weights import parse_variant

_PART = "roi_head.parts.0."
MMDET2 = Layout(
    name="mmdet2",
    title="mmdetection 2.x: FASA, IIF, EQL, EQLv2, Seesaw, group softmax, ECM, GOL",
    marks=(r"roi_head\.bbox_head\.",),
    rules=(
        Rule(r"roi_head\.bbox_head\.((?:\d\.)?)feature_mean$", rf"{_PART}\1mean"),
        Rule(r"roi_head\.bbox_head\.((?:\d\.)?)feature_std$", rf"{_PART}\1var"),
        Rule(r"roi_head\.bbox_head\.((?:\d\.)?)feature_used$", rf"{_PART}\1seen"),
        Rule(r"roi_head\.bbox_head\.((?:\d\.)?)prob_list$", rf"{_PART}\1prob"),
        Rule(r"roi_head\.bbox_head\.((?:\d\.)?)cum_loss_perclass_t1$", rf"{_PART}\1prev_loss"),
        Rule(r"roi_head\.bbox_head\.(?:\d\.)?cum_loss_perclass_t0$", None),
        Rule(r"roi_head\.bbox_head\.((?:\d\.)?)fc_cls\.", r"roi_head.bbox_head.\1fc_cls.", "classifier"),
        Rule(r"roi_head\.bbox_head\.((?:\d\.)?)fc_reg\.", r"roi_head.bbox_head.\1fc_reg.", "regressor"),
        Rule(r"roi_head\.mask_head\.((?:\d\.)?)conv_logits\.", r"roi_head.mask_head.\1conv_logits.", "mask"),
        Rule(r"(roi_head\.bbox_head\.(?:\d\.)?loss_cls)\.(pos_grad|neg_grad|pos_neg|cum_samples)$", r"\1.\2"),
        Rule(r"roi_head\.bbox_head\.(?:\d\.)?loss_cls\.", None),
        Rule(r"(backbone|neck|rpn_head|roi_head)\.", r"\1."),
    ),
    plain_heads=False,
)
LOSSES = {
    "CrossEntropyLoss": "cross_entropy",
    "CrossEntropyCounterLoss": "cross_entropy",
    "IIFLoss": "iif",
    "FasaIIFLoss": "iif",
    "EQL": "eql",
    "EQLv2": "eqlv2",
    "EQLV2Loss": "eqlv2",
    "SeesawLoss": "seesaw",
    "GroupSoftmax": "group_softmax",
    "EffectiveClassMarginLoss": "ecm",
    "GumbelCE": "gumbel",
}
DROPLOSS = {"gumbel": "gol", "sigmoid": "droploss"}
"""Losses by the score that kostas1515/GOL's ``DropLoss`` names in ``use_classif``; it has others, which we do not."""


def with_part_state(state: State) -> State:
    """Return the state with FASA's statistics complete and of our types; unchanged without them."""
    filled = dict(state)
    for key, value in state.items():
        if not (key.startswith(_PART) and key.endswith("mean")):
            continue
        part = key.removesuffix("mean")
        filled[f"{part}seen"] = state[f"{part}seen"] > 0
        filled.setdefault(f"{part}prev_loss", torch.zeros(len(value) + 1))
        for counter in ("iteration", "drawn"):
            filled[part + counter] = torch.zeros((), dtype=torch.int64)
    return filled


def with_folded_scale(state: State) -> State:
    """Return LWS's scaled rows ``W_c s_c`` as the weights of a linear classifier; unchanged without scales."""
    folded = {key: value for key, value in state.items() if not key.endswith("fc_cls.weight_scaler")}
    for key in state.keys() - folded.keys():
        name = key.replace("weight_scaler", "weight")
        folded[name] = state[name] * state[key]
    return folded


def choices_from_config(meta: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the choices of ``model`` that the config stored with the weights names; empty without one.

    Args:
        meta: The checkpoint's ``meta``; its ``config`` is the text of an mmcv config.
    """
    model = _model(meta.get("config", meta.get("cfg")))
    roi_head = model.get("roi_head") if isinstance(model, Mapping) else None
    if not isinstance(roi_head, Mapping):
        return {}
    box, mask = (_first(roi_head.get(name)) for name in ("bbox_head", "mask_head"))
    found: dict[str, dict[str, Any]] = {}
    loss = box.get("loss_cls", {})
    name = DROPLOSS.get(loss.get("use_classif")) if loss.get("type") == "DropLoss" else LOSSES.get(loss.get("type"))
    if name is not None:
        found["loss"] = {"type": name}
        if found["loss"]["type"] == "iif" and "variant" in loss:
            found["loss"] |= iif_options(loss["variant"])
    found["classifier"] = _predictor(box.get("cls_predictor_cfg"), "NormedLinear", "normed_linear", "linear")
    if mask:
        found["mask"] = _predictor(mask.get("predictor_cfg"), "NormedConv2d", "normed", "fcn")
    return {slot: choice for slot, choice in found.items() if choice}


def iif_options(name: str) -> dict[str, Any]:
    """Return our options of a variant by its column in the published tables, e.g. ``base10_obj``."""
    variant, count = parse_variant(name)
    return {"variant": variant, "count": count}


def _predictor(config: Any, normed: str, name: str, plain: str) -> dict[str, Any]:
    kind = config.get("type") if isinstance(config, Mapping) else None
    if kind == normed:
        return {"type": name, "temperature": float(config.get("temperature", 20))}
    return {"type": plain} if kind in (None, "Linear", "Conv", "Conv2d") else {}


def _first(value: Any) -> Mapping[str, Any]:
    head = value[0] if isinstance(value, list) and value else value
    return head if isinstance(head, Mapping) else {}


def _model(text: Any) -> Any:
    """Return the variable ``model`` of a config's text, without running it; None if it is not all literals."""
    if not isinstance(text, str):
        return None
    try:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "model" for t in node.targets):
                return modern_spelling(_value(node.value))
    except (SyntaxError, ValueError, RecursionError):
        pass
    return None


def _value(node: ast.expr) -> Any:
    """Return a literal, where ``dict(a=1)`` is one too."""
    if isinstance(node, ast.Call):
        if not (isinstance(node.func, ast.Name) and node.func.id == "dict") or node.args:
            raise ValueError("a call")
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)

"""Mask head whose class filters are predicted from the classifier's rows.

Papers: Learning to Segment Every Thing (Hu et al., CVPR 2018, arXiv 1711.10370) for the transfer function; Learning to
Segment the Tail (CVPR 2020, arXiv 2004.00900; repository JoyHuYY1412/LST_LVIS), whose variant this is:

    M_c         = LReLU(U2 LReLU(U1 w_c + u1) + u2)          w_c: raw classifier row, slope 0.01
    F           = ReLU(deconv(convs(f)))
    logit(n, c) = sum_ch M[c, ch] F[n, ch] + V vec(F_n) + v  V: fusion branch, the same map for every class

Acts in place of mmdet's ``FCNMaskHead``. A new class gets its mask filter from its classifier row, so no mask layer
grows between phases. Needs the classifier's ``(C, d)`` weight and the RoIs' labels, which the RoI head hands over. Only
the filter of each RoI's own label is computed; logits of all classes are never stored in training.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import Tensor, nn

from ltpipe.errors import UserError
from ltpipe.registry import method


@method("mask", "weight_transfer")
class MaskXTransferHead(FCNMaskHead):
    """Mask head with filters transferred from the classifier.

    Args:
        transfer_detach: Keep the gradient of the mask loss from the classifier's rows. LST lets it through, the paper
            of the transfer function stops it.
        fusion: Class-agnostic fully connected branch added to every class: ``full`` is LST's (157 million parameters
            at 28 x 28), ``small`` the same map with rank ``fusion_rank``, ``none`` leaves it out.
        fusion_rank: Rank of the ``small`` branch (16: 3.2 million parameters).
        class_features: Width of the classifier's rows.
        **kwargs: Passed to mmdet's ``FCNMaskHead``; ``roi_feat_size`` must be the pooled size.
    """

    needs_class_weight = True

    def __init__(
        self,
        *,
        transfer_detach: bool = False,
        fusion: Literal["none", "small", "full"] = "small",
        fusion_rank: int = 16,
        class_features: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # The filters come from the classifier, and every map handed on is that of the RoI's own label.
        self.conv_logits = None
        self.class_agnostic = True
        self.transfer_detach = transfer_detach
        self.labels: Tensor | None = None  # of the RoIs of the next forward pass; the RoI head tells them
        channels = self.conv_out_channels
        self.weight_transfer = nn.Sequential(
            nn.Linear(class_features, class_features),
            nn.LeakyReLU(0.01),
            nn.Linear(class_features, channels),
            nn.LeakyReLU(0.01),
        )
        pixels = self.roi_feat_size[0] * self.roi_feat_size[1] * (self.scale_factor or 1) ** 2
        self.mlp_fusion = self._fusion(fusion, channels * pixels, pixels, fusion_rank)

    @staticmethod
    def _fusion(kind: str, inputs: int, outputs: int, rank: int) -> nn.Module | None:
        if kind == "none":
            return None
        if kind == "full":
            return nn.Linear(inputs, outputs)
        return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))

    def init_weights(self) -> None:
        """Initialise as LST: deconvolution and fusion Kaiming-normal (fan out), transfer layers as PyTorch does."""
        super().init_weights()
        fusion = [] if self.mlp_fusion is None else self.mlp_fusion.modules()
        for layer in (module for module in fusion if isinstance(module, nn.Linear)):
            bias: nn.Parameter | None = layer.bias
            if bias is None:
                # The first low-rank factor only averages its inputs; the second carries the scale of the full matrix.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            else:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(bias)

    def class_filters(self, class_weight: Tensor) -> Tensor:
        """Return the mask filters ``(n, ch)`` of classifier rows ``(n, d)``."""
        if class_weight.shape[1] != self.weight_transfer[0].in_features:
            raise UserError(
                "the mask head expects classifier rows of another width",
                where="model.mask.class_features",
                got=self.weight_transfer[0].in_features,
                allowed=f"{class_weight.shape[1]}, the width of the box head's classifier",
            )
        return self.weight_transfer(class_weight.detach() if self.transfer_detach else class_weight)

    def pixel_features(self, x: Tensor) -> Tensor:
        """Return the upsampled features ``(N, ch, h, w)`` of pooled RoI features ``(N, c, h', w')``."""
        for conv in self.convs:
            x = conv(x)
        if self.upsample is None:
            return x
        x = self.upsample(x)
        return self.relu(x) if self.upsample_method == "deconv" else x

    def read_classifier_of(self, bbox_head: Any) -> None:
        """Make the filters of the rows of this box head's classifier."""
        self._bbox_head = (bbox_head,)  # in a tuple: it is no part of this head

    def forward(self, x: Tensor, class_weight: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return mask logits.

        Args:
            x: ``(N, c, h', w')`` float, pooled RoI features.
            class_weight: ``(C, d)`` float, the classifier's rows, label order; None: the box head's, and ``labels`` are
                those that the RoI head told.
            labels: ``(N,)`` int64 label of each RoI: ground truth in training, predicted at test time.

        Returns:
            ``(N, 1, h, w)`` float logits of each RoI's own label; without ``labels`` those of all rows,
            ``(N, C, h, w)``.
        """
        if class_weight is None:
            class_weight, labels = self._bbox_head[0].fc_cls.weight, self.labels
        features = self.pixel_features(x)
        if labels is None:
            logits = torch.einsum("nkhw,ck->nchw", features, self.class_filters(class_weight))
        else:
            logits = torch.einsum("nkhw,nk->nhw", features, self.class_filters(class_weight[labels]))[:, None]
        if self.mlp_fusion is not None:
            logits = logits + self.mlp_fusion(features.flatten(1)).reshape(-1, 1, *features.shape[2:])
        return logits

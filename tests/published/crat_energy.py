"""Layout of CRAT's gradient energy in twangnh/CRAT."""

from __future__ import annotations

from torch import Tensor


def energy_from_reference(statistic: Tensor, outputs: int) -> Tensor:
    """Return the statistic of a twangnh/CRAT checkpoint in our layout.

    There ``roi_head.bbox_head.fisher_box_layer`` becomes ``box_bank.energy`` (4 outputs) and
    ``roi_head.mask_head.fisher_box_layer`` becomes ``mask_bank.energy`` (1 output); ``grad_box_layer`` is never read.

    Args:
        statistic: ``(K, d * c)`` float, feature major.
        outputs: ``c``.

    Returns:
        ``(K, c, d)`` float.
    """
    return statistic.view(len(statistic), -1, outputs).transpose(1, 2).contiguous()

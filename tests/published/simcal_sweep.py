"""SimCal's scores at several thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ltpipe.methods.simcal.functions import Mode, distinct_choices


def sweep_thresholds(
    base: Tensor, calibrated: Tensor, instance_counts: Tensor, thresholds: Sequence[float], inclusive: bool = False
) -> Iterator[tuple[list[float], Tensor]]:
    """Yield dual-head scores for every distinct choice of tail classes, from one run of the detector.

    Args:
        base: ``(N, K + 1)`` float stored probabilities of the detector.
        calibrated: ``(N, K + 1)`` float stored probabilities of the calibrated head.
        instance_counts: ``(K,) int64`` training instances.
        thresholds: Values of T.
        inclusive: See :func:`tail_classes`.

    Yields:
        The thresholds that give this choice, ascending, and the scores ``(N, K + 1)``.
    """
    wanted: list[tuple[Mode, float | None]] = [("dual", threshold) for threshold in sorted(set(thresholds))]
    for choice in distinct_choices(instance_counts, wanted, inclusive, whole=False):
        yield [t for _, t in choice.names if t is not None], choice.fuse(base, calibrated)

"""DropLoss against the published forward pass, with the stored draws."""

from __future__ import annotations

from functools import partial

from ltpipe.methods.eql.drop import DropLoss
from tests.helpers.loss_cases import check_droploss

METHOD = "droploss"
CHECKS = {"droploss_": partial(check_droploss, kind=DropLoss)}

# mask_rcnn_r50_fpn_ms.py with the start of IIF's plain configurations: a constant classifier; passing it there also
# leaves the other layers of the box head at torch's own initialisation.
_base_ = "mask_rcnn_r50_fpn_ms.py"

model = dict(
    roi_head=dict(
        bbox_head=dict(init_cfg=[dict(type="Constant", val=0.001, bias=0.0, override=dict(name="fc_cls"))])
    )
)

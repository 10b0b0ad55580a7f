# faster_rcnn_r50_fpn_800.py with ResNeXt-101 64x4d.
_base_ = "faster_rcnn_r50_fpn_800.py"

model = dict(
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=64,
        base_width=4,
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://resnext101_64x4d"),
    )
)

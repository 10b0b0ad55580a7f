# Cascade R-CNN (boxes only) with ResNeXt-101 64x4d at one scale, as in FishYuLi/BalancedGroupSoftmax.
_base_ = "cascade_mask_rcnn_r50_fpn_ms.py"

model = dict(
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=64,
        base_width=4,
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://resnext101_64x4d"),
    ),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]

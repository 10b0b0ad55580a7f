# Mask R-CNN R-50-FPN of mmdetection 1.x, which FishYuLi/BalancedGroupSoftmax uses: torchvision weights and normalisation, one
# scale (800 x 1333 pixels), smooth L1 box loss, RoIAlign with two samples per bin.
_base_ = "mask_rcnn_r50_fpn_ms.py"

model = dict(
    rpn_head=dict(loss_bbox=dict(_delete_=True, type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(loss_bbox=dict(_delete_=True, type="SmoothL1Loss", beta=1.0, loss_weight=1.0)),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]

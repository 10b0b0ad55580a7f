# Mask R-CNN R-50-FPN with large-scale jitter and copy-paste of objects, rare classes more often.
_base_ = ["mask_rcnn_r50_fpn_ms.py"]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="RandomResize", scale=(1024, 1024), ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(1024, 1024), recompute_bbox=True, allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2), keep_empty=False),
    dict(type="RandomFlip", prob=0.5),
    dict(type="ltpipe.PasteObjects", by_class=True, rarity=0.5, max_num_pasted=6),
    dict(type="PackDetInputs"),
]

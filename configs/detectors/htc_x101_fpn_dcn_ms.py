# htc_x101_fpn.py with deformable convolutions in the last three stages and the short side drawn between 400 and 1400
# pixels in training: the largest detector of twangnh/SimCal and FishYuLi/BalancedGroupSoftmax, without semantic branch.
_base_ = "htc_x101_fpn.py"

model = dict(
    backbone=dict(
        dcn=dict(type="DCN", deform_groups=1, fallback_on_stride=False), stage_with_dcn=(False, True, True, True)
    )
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="RandomResize", scale=[(1600, 400), (1600, 1400)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]

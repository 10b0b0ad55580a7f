# Mask R-CNN R-50-FPN as SimCal uses it (arXiv 2007.11978, twangnh/SimCal): torchvision weights and normalisation, 800 x 1333
# pixels without multi-scale, smooth L1, 2000 proposals for training and calibration, boxes and masks per class.
# Weights converted from the original repository also need its older geometry (RoIAlign with aligned=False, +1 box sizes).
_base_ = "mask_rcnn_r50_fpn.py"

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        norm_cfg=dict(type="BN", requires_grad=True),
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=2000), rcnn=dict(assigner=dict(match_low_quality=True))),
)

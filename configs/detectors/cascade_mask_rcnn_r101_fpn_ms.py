# cascade_mask_rcnn_r50_fpn_ms.py with ResNet-101.
_base_ = "cascade_mask_rcnn_r50_fpn_ms.py"

model = dict(backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101")))

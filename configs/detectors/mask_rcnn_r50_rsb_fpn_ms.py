# mask_rcnn_r50_fpn_ms.py with ResNet-50 weights of "ResNet strikes back" (A1, 600 epochs); masks are cut at 0.4.
_base_ = "mask_rcnn_r50_fpn_ms.py"

_weights = "https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb256-rsb-a1-600e_in1k_20211228-20e21305.pth"
model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", prefix="backbone.", checkpoint=_weights)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.4)),
)

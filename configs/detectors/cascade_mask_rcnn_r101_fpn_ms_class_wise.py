# cascade_mask_rcnn_r101_fpn_ms.py with class-wise boxes, as in kostas1515/iif; its config has 0.33 in place of 0.033 among
# the last target_stds, which is not taken over.
_base_ = "cascade_mask_rcnn_r101_fpn_ms.py"

model = dict(
    roi_head=dict(
        bbox_head=[
            dict(
                type="Shared2FCBBoxHead",
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[*stds]),
                reg_class_agnostic=False,
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for stds in ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
        ],
    )
)

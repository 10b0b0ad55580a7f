# Hybrid task cascade R-50-FPN of mmdetection without a semantic branch: LVIS has no maps of stuff to train one on.
_base_ = "cascade_mask_rcnn_r50_fpn_ms.py"

model = dict(
    type="HybridTaskCascade",
    roi_head=dict(
        type="HybridTaskCascadeRoIHead",
        interleaved=True,
        mask_info_flow=True,
        mask_head=[
            dict(
                type="HTCMaskHead",
                with_conv_res=stage > 0,
                num_convs=4,
                in_channels=256,
                conv_out_channels=256,
                loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
            )
            for stage in range(3)
        ],
    ),
)

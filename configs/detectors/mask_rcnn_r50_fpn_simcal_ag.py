# mask_rcnn_r50_fpn_simcal.py with one box and one mask for all classes ("ag").
_base_ = "mask_rcnn_r50_fpn_simcal.py"

model = dict(roi_head=dict(bbox_head=dict(reg_class_agnostic=True), mask_head=dict(class_agnostic=True)))

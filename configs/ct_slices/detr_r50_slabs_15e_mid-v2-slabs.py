_base_ = [
    '../_base_/models/ct-detr_r50.py', '../_base_/schedules/ct-15e.py',
    '../_base_/datasets/mid-v2-slabs.py'
]

# Document 003: DETR without deformable attention, its ablation.

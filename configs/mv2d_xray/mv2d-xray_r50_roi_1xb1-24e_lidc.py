_base_ = ['../_base_/datasets/lidc.py',
          '../_base_/models/mv2d-xray_r50.py',
          '../_base_/schedules/cosine-24e.py',
          '../_base_/default_runtime.py']

# The papers' variant.
model = dict(
    data_preprocessor=_base_.bands,
    lifting_head=dict(scene_range=_base_.scene_range))

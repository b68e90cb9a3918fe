_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/breast.py',
    '../_base_/models/ag-mask-rcnn_small.py',
    '../_base_/schedules/cosine-iters.py'
]

# Document 004's AG-RCNN in small. As there, Mask R-CNN is trained first:
#   tools/train.py configs/ag_rcnn/mask-rcnn_small_1500i_breast.py
custom_imports = dict(imports=['projects.ag_rcnn'], _delete_=True)
load_from = 'work_dirs/mask-rcnn_small_1500i_breast/iter_1500.pth'
custom_hooks = [*_base_.custom_hooks, dict(type='FitRelationHook')]
train_cfg = dict(max_iters=500)
model = dict(graph=dict(
    type='CrossViewGraph', channels=_base_.width, k=3, gate='residual',
    relation=dict(type='CoOccurrence', num_nodes=_base_.num_nodes)))
# Landmarks are looked for in all pixels.
find = [
    dict(type='LoadMammogram'),
    dict(type='FindNodes', num_nodes=_base_.num_nodes),
    dict(type='ResizeMammogram', size=_base_.size),
]
test = dict(dataset=dict(pipeline=[
    dict(type='EachImage', transforms=find), dict(type='PackExam')]))
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='EachImage', transforms=[*find, *_base_.augment]),
    dict(type='PackExam')]))
val_dataloader = test
test_dataloader = test
find_unused_parameters = True  # where an image has no partner
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=.01))

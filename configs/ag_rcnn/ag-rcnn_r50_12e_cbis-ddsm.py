_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/cbis-ddsm.py',
    '../_base_/models/ag-mask-rcnn_r50.py',
    '../_base_/schedules/stages-sgd.py'
]

# Document 004's AG-RCNN, trained from Mask R-CNN, there until it overfitted
# in the seventh epoch. Its rate is not said: this is that of the last stage.
# Batches are exams, as an image and its two partners are looked at together.
custom_imports = dict(imports=['projects.ag_rcnn'], _delete_=True)
load_from = 'work_dirs/mask-rcnn_r50_55e_cbis-ddsm/epoch_55.pth'
custom_hooks = [
    *_base_.custom_hooks, dict(type='FitRelationHook'),
    dict(type='EarlyStoppingHook', monitor='R@0.5', rule='greater',
         patience=2, min_delta=1e-6)]
train_cfg = dict(max_epochs=12)
model = dict(graph=dict(
    type='CrossViewGraph', channels=256, k=3, gate='residual',
    relation=dict(type='CoOccurrence', num_nodes=_base_.num_nodes)))
find = [
    dict(type='LoadMammogram'),
    dict(type='FindNodes', num_nodes=_base_.num_nodes),
    dict(type='ResizeMammogram', size=_base_.size),
]
test = dict(dataset=dict(pipeline=[
    dict(type='EachImage', transforms=find), dict(type='PackExam')]))
train_dataloader = dict(batch_size=1, dataset=dict(exams=True, pipeline=[
    dict(type='EachImage', transforms=[*find, *_base_.augment]),
    dict(type='PackExam')]))
val_dataloader = test
test_dataloader = test
optim_wrapper = dict(optimizer=dict(lr=.0001))

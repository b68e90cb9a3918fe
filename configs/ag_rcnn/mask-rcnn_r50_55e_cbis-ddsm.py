_base_ = [
    '../_base_/default_runtime.py', '../_base_/datasets/cbis-ddsm.py',
    '../_base_/models/ag-mask-rcnn_r50.py',
    '../_base_/schedules/stages-sgd.py'
]

# Document 004: heads for 10 epochs, early layers, all for 5. How long the
# second takes is not said: AG-RCNN begins with epoch 56, which leaves 40.
custom_imports = dict(imports=['projects.ag_rcnn'], _delete_=True)
train_cfg = dict(max_epochs=55)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='StageHook', stages=[
        dict(length=10, lr=.002, parts=['neck', 'rpn_head', 'roi_head']),
        dict(length=40, lr=.0005, parts=[
            'backbone.conv1', 'backbone.bn1', 'backbone.layer1',
            'backbone.layer2']),
        dict(length=5, lr=.0001)]),
]

# Single X-ray views of the chests of `quick-v2`, 10 views x 256², each with
# the view 72 degrees further as a partner. Lengths in mm.
data_root = 'data/quick-v2/'
grid = 16  # nodes along an edge
load = [dict(type='LoadMammogram'), dict(type='GridNodes', count=grid)]
views = dict(
    type='ViewPairDataset', data_root=data_root, step=2, min_diameter=5.)
test_pipeline = [
    dict(type='EachImage', transforms=load), dict(type='PackExam'),
]
train_pipeline = [
    dict(type='EachImage', transforms=[
        *load, dict(type='MammogramTones')]),
    dict(type='PackExam'),
]
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(views, ann_file='lidc_infos_train.pkl',
                 coco_file='lidc_infos_train_2d_anno.coco.json',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(views, ann_file='lidc_infos_val.pkl',
                 coco_file='lidc_infos_val_2d_anno.coco.json',
                 test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(views, ann_file='lidc_infos_test.pkl',
                 coco_file='lidc_infos_test_2d_anno.coco.json',
                 test_mode=True, pipeline=test_pipeline))
val_evaluator = [dict(type='ImageFROCMetric')]
test_evaluator = val_evaluator

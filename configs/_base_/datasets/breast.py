# Synthetic breasts, both views of both, made by
#   python -m data_converters breast --out-dir data/breast_dicom \
#       --num-patients 120 --image-size 256
#   python -m data_converters mammograms --dicom-root data/breast_dicom \
#       --out-dir data/breast --image-size 256
# or any set of this format. A sample is an exam.
data_root = 'data/breast/'
size = 256  # px
num_nodes = [22, 26]  # of the graph, in CC and in MLO

load = [dict(type='LoadMammogram'), dict(type='ResizeMammogram', size=size)]
augment = [dict(type='WarpMammogram'), dict(type='MammogramTones')]
train_pipeline = [
    dict(type='EachImage', transforms=[*load, *augment]),
    dict(type='PackExam'),
]
test_pipeline = [
    dict(type='EachImage', transforms=load), dict(type='PackExam'),
]
exams = dict(type='MammogramDataset', data_root=data_root)
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(exams, ann_file='annotations/instances_train.json',
                 pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(exams, ann_file='annotations/instances_val.json',
                 test_mode=True, pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(exams, ann_file='annotations/instances_test.json',
                 test_mode=True, pipeline=test_pipeline))
val_evaluator = [dict(type='ImageFROCMetric')]
test_evaluator = val_evaluator

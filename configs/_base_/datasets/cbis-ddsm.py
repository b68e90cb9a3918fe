_base_ = ['./breast.py']

# CBIS-DDSM as document 004 trains on it, made by
#   python -m data_converters mammograms
# from what TCIA delivers: images of 1024 px, two a batch.
data_root = 'data/cbis-ddsm/'
size = 1024  # px
load = [dict(type='LoadMammogram'), dict(type='ResizeMammogram', size=size)]
augment = [dict(type='WarpMammogram'), dict(type='MammogramTones')]
train_dataloader = dict(
    batch_size=2, num_workers=4, persistent_workers=True,
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(data_root=data_root, exams=False, pipeline=[
        dict(type='EachImage', transforms=[*load, *augment]),
        dict(type='PackExam')]))
test_pipeline = [
    dict(type='EachImage', transforms=load), dict(type='PackExam'),
]
val_dataloader = dict(dataset=dict(data_root=data_root,
                                   pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(data_root=data_root,
                                    pipeline=test_pipeline))

"""A training that dies in the middle, for the test of resuming."""

from mmdet3d.registry import HOOKS
from mmengine.hooks import Hook


@HOOKS.register_module()
class StopAfterTwo(Hook):
    """Raises when the second iteration, and its checkpoint, are done."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        """Die."""
        if runner.iter + 1 == 2:
            raise RuntimeError('killed')

"""Two views of one breast: Mask R-CNN and AG-RCNN (document 004)."""

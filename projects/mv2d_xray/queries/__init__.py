"""Where queries come from: 2D boxes, and peaks of a volume."""

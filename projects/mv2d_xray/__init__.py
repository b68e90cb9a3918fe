"""MV2D-Xray: 3D boxes of small indications from a few X-ray views."""

"""Articulated subjects from video alone (Sec. 3.2, B.1): keypoints -> EPnP poses -> inverse skinning -> animation."""

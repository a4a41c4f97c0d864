"""Outlines and volumes as DICOM objects: a segmentation (SEG) and a measurement report (SR).

Both are results of research: series description, content label and text say that they are not for
clinical use. They are filed with the study that they were made of, so that patient and study are
copied from its files; nothing of them is logged.
"""
